"""Reads every file of a data set once, on all cores."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.errors import UserError
from utils.files import content_digest
from utils.image import pil_loader

_BATCH = 32
# With fewer images than this, starting processes takes longer than reading.
WORTH_A_PROCESS = 256


class ImageFacts(NamedTuple):
    """What reading a file reveals: its size in pixels and a digest of its bytes, or why it cannot be read."""

    path: str
    width: int = 0
    height: int = 0
    digest: bytes = b""
    error: str = ""


def read_facts(path: str, exif_orientation: bool = True) -> ImageFacts:
    """Read and decode a file as training would."""
    try:
        image = pil_loader(path, exif_orientation)
    except UserError as error:
        return ImageFacts(path, error=str(error))
    digest = content_digest(path)
    return ImageFacts(path, *image.size, digest) if digest else ImageFacts(path, error=f"Image {path} cannot be read.")


class _Files(Dataset[ImageFacts]):
    def __init__(self, paths: Sequence[str], exif_orientation: bool) -> None:
        self.paths = paths
        self.exif_orientation = exif_orientation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageFacts:
        return read_facts(self.paths[index], self.exif_orientation)


def scan_images(paths: Iterable[str], num_workers: int, exif_orientation: bool = True) -> dict[str, ImageFacts]:
    """Read every file once, in the order of ``paths``; shows a progress bar on a terminal.

    Args:
        paths: of image files; repeated ones are read once.
        num_workers: worker processes; with 0, or with few files, this process reads them itself.
        exif_orientation: as for ``pil_loader``.
    """
    distinct = list(dict.fromkeys(paths))
    workers = min(num_workers, len(distinct) // WORTH_A_PROCESS)
    batches = DataLoader(_Files(distinct, exif_orientation), batch_size=_BATCH, num_workers=workers, collate_fn=list)
    facts: dict[str, ImageFacts] = {}
    with tqdm(total=len(distinct), unit="image", desc="reading", disable=None, dynamic_ncols=True) as bar:
        for batch in batches:
            facts.update((fact.path, fact) for fact in batch)
            bar.update(len(batch))
    return facts
