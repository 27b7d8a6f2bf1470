"""Several data sets at once: trains on the identities of all, tests on the first."""

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from datasets.bases import Annotation, ReidDataModule, Splits
from datasets.counts import camera_name
from datasets.draws import GalleryDraw
from datasets.loading import Sample
from utils.errors import UserError
from utils.labels import Names


def merge_splits(parts: Sequence[Splits]) -> Splits:
    """Join the training images of all parts, and keep query and gallery of the first.

    Identities and cameras of each part are numbered on from those of the part before it, so that none is shared; the
    identities of the first part have the labels that they would have without the others. Names and notes are kept; if
    any part names its cameras, those of later parts are told apart by the number of the part.

    Args:
        parts: one or more.
    """
    train: list[Annotation] = []
    cameras: dict[int, str] = {}
    is_named = any(part.names.cameras for part in parts)
    next_pid = next_camid = 0
    for number, part in enumerate(parts, start=1):
        pids = {pid: next_pid + i for i, pid in enumerate(sorted({pid for _, pid, _ in part.train}))}
        train += [(path, pids[pid], next_camid + camid) for path, pid, camid in part.train]
        camids = {camid for images in part[:3] for _, _, camid in images}
        if is_named:
            suffix = "" if number == 1 else f" (set {number})"
            cameras |= {next_camid + camid: camera_name(part.names, camid) + suffix for camid in camids}
        next_pid += len(pids)
        next_camid += 1 + max(camids)
    # Names of identities are those of query and gallery; labels of training need none.
    names = parts[0].names if not is_named else Names(parts[0].names.pids, cameras)
    return parts[0]._replace(train=train, names=names, notes=tuple(note for part in parts for note in part.notes))


class MergedDataModule(ReidDataModule):
    """DATASETS.NAMES such as market1501+dukemtmcreid; the same DATASETS keys apply to all.

    Args:
        parts: the data modules of the names, in their order; none of them set up.
        kwargs: as for :class:`~datasets.bases.ReidDataModule`.

    Raises:
        UserError: two parts show the same identities, which would contradict each other as different classes.
    """

    one_numbering = False  # merge_splits numbers the training identities anew

    def __init__(self, parts: Sequence[ReidDataModule], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts
        first_of: dict[str, ReidDataModule] = {}
        for part in parts:
            other = first_of.setdefault(part.family or type(part).__name__, part)
            if other is not part:
                raise UserError(
                    f"DATASETS.NAMES joins {other.title} and {part.title}, which show the same identities; as "
                    "different classes they would contradict each other. Name one of them."
                )

    @property
    def title(self) -> str:
        """The titles of the parts, joined by +."""
        return "+".join(part.title for part in self.parts)

    def describe_source(self) -> str:
        """The sources of the parts."""
        return "; ".join(dict.fromkeys(part.describe_source() for part in self.parts))

    def draw_gallery(self, images: Sequence[Sample], number: int) -> GalleryDraw | None:
        """As the first part, whose queries and gallery these are."""
        return self.parts[0].draw_gallery(images, number)

    def read_splits(self) -> Splits:
        return self._join("test")

    def read_for(self, stage: str | None = None) -> Splits:
        """As the base class; query and gallery of each part join its own training images."""
        splits = self._join(stage)
        self.is_combined = any(part.is_combined for part in self.parts)
        return splits

    def _join(self, stage: str | None) -> Splits:
        read = []
        seen: set[str] = set()
        for part in self.parts:
            splits = part.read_for(stage)
            if part.fills_by_hand:
                rank_zero_info(
                    f"{part.title}: joined with others, it gives its lists; images are read and transformed as the "
                    "configuration says."
                )
            shared = next((path for path, _, _ in splits.train if path in seen), None)
            if shared:
                raise UserError(f"DATASETS.NAMES {self.cfg.DATASETS.NAMES}: {shared} is in two of the training sets.")
            seen |= {path for path, _, _ in splits.train}
            read.append(splits)
        return merge_splits(read)
