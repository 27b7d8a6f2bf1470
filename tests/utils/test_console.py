"""What commands print."""

import io
import os

import pytest

from tests.launch import start_python
from utils.console import say


@pytest.fixture
def closed_pipe(monkeypatch):
    """A standard output whose reader has gone away."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        yield


def test_a_reader_that_has_gone_away_is_no_error(closed_pipe):
    say("one\n")
    say("two\n")


def test_text_is_seen_at_once(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, write_through=False))
    say("one\n")
    assert raw.getvalue() == b"one\n"


def test_a_program_ends_well_though_nobody_reads(tmp_path):
    """What is still buffered as Python ends goes nowhere, too; it would be status 120 and a message."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, (tmp_path / "err").open("w+") as errors:
        code, buffered = "from utils.console import say; say('one')", {"PYTHONUNBUFFERED": None}
        program = start_python("-c", code, env=buffered, stdout=stream, stderr=errors)
        assert program.wait() == 0
        errors.seek(0)
        assert errors.read() == ""
