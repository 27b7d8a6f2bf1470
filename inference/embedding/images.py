"""List the image files of a folder, and read images of any kind as pixels at the network's size."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datasets.transforms.pixels import ResizedPlanes
from inference.embedding.inputs import as_rgb
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

_BATCHES_AHEAD = 2  # decoded while one is computed
_PARTS_PER_WORKER = 4  # parts of a batch, small enough that the workers finish at about the same time
# Files that nobody misses among images: hidden ones, those of file managers, and what create_embeddings.py and
# get_similar.py write.
_EXPECTED = re.compile(
    r"\..*|thumbs\.db|desktop\.ini|embeddings\..*|(query_)?(embeddings|paths|pids|camids)\.npy|gallery\.json"
    r"|skipped\.txt|results\.(npy|jsonl|csv|html)|\d{8}\.(npy|npy\.new|json|claim)",
    re.IGNORECASE,
)


class _Found(NamedTuple):
    images: list[str]
    others: list[str]  # files beside them that are not images by their names
    elsewhere: list[str]  # images in subfolders if those of the folder itself were wanted, and the other way round


def get_all_images(path: str | os.PathLike[str], in_subfolders: bool = False) -> list[str]:
    """The image files of a folder, sorted; or ``path`` itself if it is a file.

    One warning says how many files were passed over: those that are not images by their names (except hidden files and
    what this project's programs write), and the images on the other level.

    Args:
        path: folder or file. In a folder, the files with an image's suffix (.jpg, .png, ...) count.
        in_subfolders: take the files in and below the folder's subfolders instead, subfolder after subfolder, in the
            order of torchvision's ImageFolder. Links to folders are followed, except those that lead back up.

    Returns:
        Paths that begin with ``path`` as it was given; [] for a folder without images.

    Raises:
        MissingPathError: there is no such file or folder.
        UserError: the folder, or one below it, cannot be listed.
    """
    found = _look_through(path, in_subfolders)
    _warn_of_passed_over(path, in_subfolders, found)
    return found.images


def find_images(path: str | os.PathLike[str], in_subfolders: bool = False, warns: bool = True) -> list[str]:
    """Like :func:`get_all_images`, but a folder without images is an error.

    Args:
        path, in_subfolders: as there.
        warns: False leaves out the warning, for callers that list the folder a second time.

    Raises:
        MissingPathError: there is no such file or folder.
        UserError: the folder cannot be listed or holds no images; the message says where they were looked for.
    """
    found = _look_through(path, in_subfolders)
    if found.images:
        if warns:
            _warn_of_passed_over(path, in_subfolders, found)
        return found.images
    suffixes = ", ".join(IMAGE_SUFFIXES)
    more = f"; it holds {_counted(found.others, 'other file')}" if found.others else ""
    if in_subfolders:
        more += "; the folder itself does: leave out --images-in-subfolders" if found.elsewhere else ""
        raise UserError(f"{os.fspath(path)!r} has no subfolder with images ({suffixes}){more}.")
    more += "; its subfolders do: --images-in-subfolders takes those" if found.elsewhere else ""
    raise UserError(f"{os.fspath(path)!r} holds no images ({suffixes}){more}.")


def report_passed_over(path: str | os.PathLike[str], in_subfolders: bool) -> None:
    """Log the warning of :func:`get_all_images`, for callers that list the images themselves."""
    _warn_of_passed_over(path, in_subfolders, _look_through(path, in_subfolders))


def _warn_of_passed_over(path: str | os.PathLike[str], in_subfolders: bool, found: _Found) -> None:
    texts = []
    if found.others:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        texts.append(f"{_counted(found.others, 'file')} without the name of an image ({suffixes})")
    if found.elsewhere and in_subfolders:
        texts.append(f"{_counted(found.elsewhere, 'image')} in the folder itself: only its subfolders were wanted")
    elif found.elsewhere:
        texts.append(f"{_counted(found.elsewhere, 'image')} in subfolders: --images-in-subfolders takes those")
    if texts:
        logger.warning("Passed over in %r: %s.", os.fspath(path), "; ".join(texts))


def _counted(paths: list[str], what: str) -> str:
    return f"1 {what}, {paths[0]!r}," if len(paths) == 1 else f"{len(paths)} {what}s, such as {paths[0]!r},"


def _look_through(path: str | os.PathLike[str], in_subfolders: bool) -> _Found:
    path = os.fspath(path)
    if path and Path(path).is_file():
        return _Found([path], [], [])
    if not path or not Path(path).is_dir():  # "" would be the current folder
        raise MissingPathError(f"{path!r} does not exist; expected a folder of images or one image file.")
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        top = [(path, [entry.name for entry in entries if not entry.is_dir()])]
        below = [
            (root, files)
            for folder in _without_loops(path, path, [entry.name for entry in entries if entry.is_dir()])
            for root, files in sorted(_walk(path, folder, _stop if in_subfolders else None))
            if in_subfolders or f"{os.sep}." not in root[len(path) - 1 :]  # nobody misses hidden folders
        ]
    except OSError as error:
        raise UserError(
            f"the folder {error.filename!r} cannot be listed ({error.strerror}); make it readable, or choose another."
        ) from error
    wanted, unwanted = (below, top) if in_subfolders else (top, below)
    return _Found(
        [image for root, names in wanted for image in _images_among(root, names)],
        [
            os.path.join(root, name)  # noqa: PTH118 - as below
            for root, names in wanted
            for name in sorted(names)
            if not is_image_name(name) and not _EXPECTED.fullmatch(name)
        ],
        [image for root, names in unwanted for image in _images_among(root, names)],
    )


def _stop(error: OSError) -> None:  # os.walk by default skips what it cannot list
    raise error


def _walk(
    top: str, folder: str = "", onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The folders in and below ``top``/``folder``, with the names of their files; links are followed, loops are not."""
    for root, folders, files in os.walk(os.path.join(top, folder), onerror=onerror, followlinks=True):  # noqa: PTH118
        folders[:] = _without_loops(top, root, folders)
        yield root, files


def _without_loops(top: str, root: str, names: list[str]) -> list[str]:
    """The folders in ``root``, except links to a folder on the way from ``top`` to ``root``, or to one above those."""
    links = {name: link.resolve() for name in names if (link := Path(root, name)).is_symlink()}
    if not links:
        return names
    ancestors = [Path(root)]
    while ancestors[-1] != Path(top):
        ancestors.append(ancestors[-1].parent)
    real = [folder.resolve() for folder in ancestors]
    loops = {name for name, target in links.items() if any(folder.is_relative_to(target) for folder in real)}
    return [name for name in names if name not in loops]


def holds_images(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an image file at any depth; False if it is not a folder."""
    return any(_images_among(root, files) for root, files in _walk(os.fspath(path)))


def is_image_name(path: str) -> bool:
    """Whether a file is an image by its suffix; macOS writes ._name beside name, which is none."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(path).startswith("._")  # noqa: PTH119


def _images_among(folder: str, names: Any) -> list[str]:
    # os.path.join, not Path, which would rewrite "./images" and "images//a".
    return [os.path.join(folder, name) for name in sorted(names) if is_image_name(name)]  # noqa: PTH118


def read_pixels(source: Any, resize: ResizedPlanes, exif_orientation: bool = True) -> Tensor:
    """Read an image and resize it as everywhere else (see :mod:`datasets.transforms.pixels`); values are not scaled.

    Args:
        source: as for :func:`inference.embedding.inputs.as_rgb`.
        resize: height and width of the result, and how images are brought to them.
        exif_orientation: as there.

    Returns:
        uint8 [3, height, width].

    Raises:
        MissingPathError: the file does not exist.
        UserError: the file cannot be read, or ``source`` is not an image.
    """
    return resize(as_rgb(source, exif_orientation, resize.least))


@dataclass
class PixelBatch:
    """The images of one batch, and the errors of those that could not be read."""

    pixels: Tensor  # [B, 3, height, width] uint8; arbitrary where there is an error
    errors: dict[int, UserError] = field(default_factory=dict)  # position in the batch -> error


def read_batches(
    batches: Iterable[Sequence[Any]],
    resize: ResizedPlanes,
    num_workers: int,
    pin_memory: bool = False,
    exif_orientation: bool = True,
    total: int | None = None,
) -> Iterator[PixelBatch]:
    """Read images in threads, a few batches ahead of the caller.

    Pillow decodes and resizes without holding Python's lock, so threads work in parallel; unlike worker processes they
    start at once, and in any program.

    Args:
        batches: batches of sources as for :func:`read_pixels`; they are taken as they are needed, in the calling
            thread, and may be empty.
        resize: as for :func:`read_pixels`.
        num_workers: threads; 0 reads in the calling thread.
        pin_memory: read into pinned memory, for faster copies to a CUDA device.
        exif_orientation: as for :func:`read_pixels`.
        total: how many images there are, for errors that name the position of what is no file among them; None leaves
            the position out.
    """
    read = partial(_read_one, resize=resize, exif_orientation=exif_orientation, total=total)
    starting = _with_starts(batches, resize.size, pin_memory)
    if not num_workers:
        for batch, sources, start in starting:
            _fill(batch, sources, read, start, 0, 1)
            yield batch
        return
    parts = num_workers * _PARTS_PER_WORKER
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        waiting: list[tuple[PixelBatch, list[Future[None]]]] = []
        for batch, sources, start in starting:
            steps = range(min(parts, len(sources)))
            futures = [executor.submit(_fill, batch, sources, read, start, i, len(steps)) for i in steps]
            waiting.append((batch, futures))
            if len(waiting) > _BATCHES_AHEAD:
                yield _finished(*waiting.pop(0))
        while waiting:
            yield _finished(*waiting.pop(0))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _with_starts(
    batches: Iterable[Sequence[Any]], size: Sequence[int], pin_memory: bool
) -> Iterator[tuple[PixelBatch, Sequence[Any], int]]:
    start = 0
    for sources in batches:
        yield PixelBatch(torch.empty(len(sources), 3, *size, dtype=torch.uint8, pin_memory=pin_memory)), sources, start
        start += len(sources)


def _fill(
    batch: PixelBatch, sources: Sequence[Any], read: Callable[[Any, int], Tensor], start: int, first: int, step: int
) -> None:
    for position in range(first, len(sources), step):
        try:
            batch.pixels[position] = read(sources[position], start + position)
        except UserError as error:
            batch.errors[position] = error


def _read_one(source: Any, position: int, resize: ResizedPlanes, exif_orientation: bool, total: int | None) -> Tensor:
    """One of the images; an error names the file, or else the position among the images."""
    try:
        return read_pixels(source, resize, exif_orientation)
    except UserError as error:
        if isinstance(source, str | os.PathLike) or total in (None, 1):
            raise
        raise UserError(f"image {position} of {total}, counted from 0: {error}") from error


def _finished(batch: PixelBatch, futures: list[Future[None]]) -> PixelBatch:
    for future in futures:
        future.result()
    return batch
