"""The fault matrix: what the tests inject, how, and what comes of it. ``python -m tests.e2e.faults`` writes it.

A test function declares its row by :func:`fault` and fails if the outcome is another. The table stands between two
marks in docs/FAULTS.md; a test compares it with what is declared.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.support import ROOT

DOCUMENT = ROOT / "docs" / "FAULTS.md"
MARKS = ("<!-- fault matrix: python -m tests.e2e.faults -->\n", "<!-- end of the fault matrix -->\n")
MODULES = ("tests.e2e.test_interruption", "tests.e2e.test_faults")


class Fault(NamedTuple):
    """A row of the matrix."""

    what: str
    how: str
    outcome: str


MATRIX: dict[str, list[Fault]] = {}  # module of the tests -> its rows
Test = TypeVar("Test", bound=Callable[..., object])


def fault(what: str, how: str, outcome: str) -> Callable[[Test], Test]:
    """Declare which fault a test injects, how, and the outcome that it asserts."""

    def declare(test: Test) -> Test:
        MATRIX.setdefault(test.__module__, []).append(Fault(what, how, outcome))
        return test

    return declare


def render() -> str:
    """The table of all declared faults, in Markdown."""
    for module in MODULES:
        importlib.import_module(module)
    rows = [" | ".join(row) for module in MODULES for row in MATRIX[module]]
    return (
        "\n".join(["| fault | injected how | outcome |", "| --- | --- | --- |", *(f"| {row} |" for row in rows)]) + "\n"
    )


def replaced(text: str, table: str) -> str:
    """A document with the table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}{table}{MARKS[1]}{after}"


if __name__ == "__main__":
    from tests.e2e import faults  # the module that the tests declare their rows to

    path = Path(DOCUMENT)
    path.write_text(replaced(path.read_text(encoding="utf-8"), faults.render()), encoding="utf-8")
