import json

import pytest
import torch

from benchmarks import tables
from tests.launch import run_python

# Cells that hold a dash by design: what a row does not have.
DASHES = {"embedding_forward": 1, "soak": 4}


@pytest.fixture
def run_benchmark(tmp_path):
    """Run a benchmark as a user would, and return its report; status lists the exit statuses that may be."""

    def run(script, *arguments, status=(0,), timeout=300):
        out = tmp_path / "report.json"
        done = run_python(f"benchmarks/{script}.py", *arguments, "--out", out, timeout=timeout)
        assert done.returncode in status, done.stderr
        report = json.loads(out.read_text())
        assert report["command"].startswith(f"python benchmarks/{script}.py ")
        return report

    return run


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """The same in this process, which has imported torch already."""
    threads = torch.get_num_threads()

    def run(module, *arguments):
        out = tmp_path / "report.json"
        monkeypatch.setattr("sys.argv", [module.__file__, *map(str, arguments), "--out", str(out)])
        module.main()
        return json.loads(out.read_text())

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def check_table():
    """Fail if a table does not find all that it shows in a report."""

    def check(name, report, dashes=None):
        text = tables.render(name, {tables.TABLES[name].report: report})
        assert text.startswith("| ")
        assert text.count(f" {tables.NOTHING} ") == (DASHES.get(name, 0) if dashes is None else dashes), text

    return check
