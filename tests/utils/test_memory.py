"""The memory that a program may use, as control groups limit it."""

import psutil
import pytest

from utils.memory import memory_limit


def test_a_machine_has_its_memory(tmp_path):
    assert memory_limit(tmp_path / "none", tmp_path) == psutil.virtual_memory().total
    assert 0 < memory_limit() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000\n", "a/b/memory.max": "max\n"}, 1000),
        ("0::/\n", {"memory.max": "3000"}, 3000),
        ("3:cpu,memory:/docker/x\n", {"memory/memory.limit_in_bytes": "2000", "memory.limit_in_bytes": "9"}, 2000),
        ("3:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "5"}, None),
        ("0::/a\n", {"b/memory.max": "5", "a/memory.max": str(1 << 62)}, None),
    ],
)
def test_the_least_limit_of_its_groups_counts(tmp_path, membership, files, limit):
    (tmp_path / "cgroup").write_text(membership)
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert memory_limit(tmp_path / "cgroup", groups) == (limit or psutil.virtual_memory().total)
