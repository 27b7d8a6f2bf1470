"""List the image files of a folder, and read images of any kind as pixels at the network's size."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.transforms.pixels import resize_to_planes
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES, pil_loader, to_rgb

_BATCHES_AHEAD = 2  # decoded while one is computed
_PARTS_PER_WORKER = 4  # parts of a batch, small enough that the workers finish at about the same time


def get_all_images(path: str | os.PathLike[str], in_subfolders: bool = False) -> list[str]:
    """The image files of a folder, sorted; or ``path`` itself if it is a file.

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
    path = os.fspath(path)
    if path and Path(path).is_file():
        return [path]
    if not path or not Path(path).is_dir():  # "" would be the current folder
        raise MissingPathError(f"{path!r} does not exist; expected a folder of images or one image file.")
    try:
        if not in_subfolders:
            return _images_among(path, (entry.name for entry in os.scandir(path) if entry.is_file()))
        folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        return [
            image
            for folder in _without_loops(path, path, folders)
            for root, files in sorted(_walk(path, folder, _stop))
            for image in _images_among(root, files)
        ]
    except OSError as error:
        raise UserError(
            f"the folder {error.filename!r} cannot be listed ({error.strerror}); make it readable, or choose another."
        ) from error


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


def find_images(path: str | os.PathLike[str], in_subfolders: bool = False) -> list[str]:
    """Like :func:`get_all_images`, but a folder without images is an error.

    Raises:
        MissingPathError: there is no such file or folder.
        UserError: the folder cannot be listed or holds no images; the message says where they were looked for.
    """
    images = get_all_images(path, in_subfolders)
    if images:
        return images
    suffixes = ", ".join(IMAGE_SUFFIXES)
    if in_subfolders:
        raise UserError(f"{os.fspath(path)!r} has no subfolder with images ({suffixes}).")
    more = "; its subfolders do: --images-in-subfolders takes those" if get_all_images(path, True) else ""
    raise UserError(f"{os.fspath(path)!r} holds no images ({suffixes}){more}.")


def holds_images(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an image file at any depth; False if it is not a folder."""
    return any(_images_among(root, files) for root, files in _walk(os.fspath(path)))


def _images_among(folder: str, names: Any) -> list[str]:
    # os.path.join, not Path, which would rewrite "./images" and "images//a".
    return [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(IMAGE_SUFFIXES)]  # noqa: PTH118


def read_pixels(source: Any, size: Sequence[int]) -> Tensor:
    """Read an image and resize it as everywhere else (see :mod:`datasets.transforms.pixels`); values are not scaled.

    Args:
        source: path of an image file, PIL image, or uint8 array [H, W, 3] in the order red, green, blue.
        size: height and width of the result.

    Returns:
        uint8 [3, height, width].

    Raises:
        MissingPathError: the file does not exist.
        UserError: the file cannot be read, or ``source`` is not an image.
    """
    if isinstance(source, str | os.PathLike):
        return resize_to_planes(pil_loader(source), size)
    if isinstance(source, Image.Image):
        return resize_to_planes(to_rgb(source), size)
    array = source.numpy() if isinstance(source, Tensor) and source.device.type == "cpu" else source
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UserError(
            f"cannot embed {_describe(source)}; expected a path, a PIL image, a uint8 array [H, W, 3] in the order "
            "red, green, blue, or a normalised float tensor [B, 3, H, W]."
        )
    return resize_to_planes(Image.fromarray(array), size)


def _describe(source: Any) -> str:
    if isinstance(source, np.ndarray | Tensor):
        return f"a {type(source).__name__} of {source.dtype} with shape {list(source.shape)}"
    return f"a {type(source).__name__}"


@dataclass
class PixelBatch:
    """The images of one batch, and the errors of those that could not be read."""

    pixels: Tensor  # [B, 3, height, width] uint8; arbitrary where there is an error
    errors: dict[int, UserError] = field(default_factory=dict)  # position in the batch -> error


def read_batches(
    sources: Sequence[Any], size: Sequence[int], batch_size: int, num_workers: int, pin_memory: bool = False
) -> Iterator[PixelBatch]:
    """Read images in threads, a few batches ahead of the caller.

    Pillow decodes and resizes without holding Python's lock, so threads work in parallel; unlike worker processes they
    start at once, and in any program.

    Args:
        sources: as for :func:`read_pixels`.
        size: height and width.
        batch_size: images in a batch; the last may have fewer.
        num_workers: threads; 0 reads in the calling thread.
        pin_memory: read into pinned memory, for faster copies to a CUDA device.
    """
    starts = range(0, len(sources), batch_size)
    if not num_workers:
        for start in starts:
            batch = _empty_batch(sources, start, batch_size, size, pin_memory)
            _fill(batch, sources, start, 0, 1, size)
            yield batch
        return
    parts = num_workers * _PARTS_PER_WORKER
    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        waiting: list[tuple[PixelBatch, list[Future[None]]]] = []
        for start in starts:
            batch = _empty_batch(sources, start, batch_size, size, pin_memory)
            steps = range(min(parts, len(batch.pixels)))
            futures = [executor.submit(_fill, batch, sources, start, i, len(steps), size) for i in steps]
            waiting.append((batch, futures))
            if len(waiting) > _BATCHES_AHEAD:
                yield _finished(*waiting.pop(0))
        while waiting:
            yield _finished(*waiting.pop(0))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _empty_batch(
    sources: Sequence[Any], start: int, batch_size: int, size: Sequence[int], pin_memory: bool
) -> PixelBatch:
    count = min(batch_size, len(sources) - start)
    return PixelBatch(torch.empty(count, 3, *size, dtype=torch.uint8, pin_memory=pin_memory))


def _fill(batch: PixelBatch, sources: Sequence[Any], start: int, first: int, step: int, size: Sequence[int]) -> None:
    for position in range(first, len(batch.pixels), step):
        try:
            batch.pixels[position] = read_pixels(sources[start + position], size)
        except UserError as error:
            batch.errors[position] = error


def _finished(batch: PixelBatch, futures: list[Future[None]]) -> PixelBatch:
    for future in futures:
        future.result()
    return batch
