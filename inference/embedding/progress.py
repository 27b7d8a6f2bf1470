"""The progress bar of an embedding run."""

from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar that counts images and shows images/s.

    Args:
        total: number of images; None if unknown.
        print_freq: batches between two updates of the bar; None updates it several times a second.
        shown: whether to show the bar.
        done: images that an earlier run embedded; they do not count towards the speed.
    """

    def __init__(self, total: int | None, print_freq: int | None = None, shown: bool = True, done: int = 0) -> None:
        self._bar = tqdm(
            total=total,
            unit="img",
            disable=not shown,
            initial=done,
            dynamic_ncols=True,
            mininterval=0.1 if print_freq is None else 0,
        )
        self._print_freq = print_freq or 1
        self._batches = self._waiting = 0

    def update(self, images: int) -> None:
        """Count a batch."""
        self._batches += 1
        self._waiting += images
        if self._batches % self._print_freq == 0:
            self._draw()

    def _draw(self) -> None:
        self._bar.update(self._waiting)
        self._waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._bar.close()
