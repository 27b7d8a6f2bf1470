"""Which evaluation of a program this is, where several runs or test sets are evaluated, and where it is kept."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from evaluation.retrieval import EvalResult


@dataclass(frozen=True)
class EvaluationPlace:
    """One of several runs, one of several test sets, or neither.

    Attributes:
        run: number of the run, from 0; None where there is only one.
        test_set: its name; "" where nobody names several.
        is_first: whether it is the first of the test sets, whose files also stand where those of a single one do.
        trained_on: the data sets of the training, for the cross-domain matrix; "" if it is not wanted.
        caveat: what must be said beside all numbers; "" for nothing.

    Example:
        >>> place = EvaluationPlace(run=2, test_set="veri776", is_first=False)
        >>> [folder.as_posix() for folder in place.folders(Path("evaluation"))]
        ['evaluation/run_2/veri776', 'evaluation/veri776']
        >>> place.label("test")
        'veri776, test'
    """

    run: int | None = None
    test_set: str = ""
    is_first: bool = True
    trained_on: str = ""
    caveat: str = ""

    @property
    def name(self) -> str:
        """The test set as files and metrics name it: not every file system has a colon in names."""
        return self.test_set.replace(":", ".")

    @property
    def prefix(self) -> str:
        """What the names of its metrics begin with."""
        return f"{self.name}/" if self.name else ""

    def label(self, stage: str) -> str:
        """What its lines begin with."""
        return f"{self.test_set}, {stage}" if self.test_set else stage

    def with_caveat(self, result: EvalResult) -> EvalResult:
        """A result with what must be said beside all numbers of this evaluation."""
        if not self.caveat:
            return result
        return replace(result, caveat=", ".join(filter(None, (self.caveat, result.caveat))))

    def folders(self, top: Path) -> list[Path]:
        """The folders below ``top`` that hold this evaluation; those of the last run are also those of a single one."""
        runs = ("",) if self.run is None else (f"run_{self.run}", "")
        sets = ("", self.name) if self.name and self.is_first else (self.name,)
        return [top / run / name for run, name in product(runs, sets)]

    def about(self, seed: int | None) -> dict[str, Any]:
        """What metrics.json says of it; nothing for a single run and test set.

        Args:
            seed: of the run, if known.
        """
        run = {} if self.run is None else {"run": {"number": self.run, "seed": seed}}
        return run | ({"trained_on": self.trained_on} if self.trained_on else {})
