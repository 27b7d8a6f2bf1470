"""Loaders and loops for programs that embed with a model of their own.

:class:`inference.Embedder` does the same in one call, and faster.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from datasets.loading import LateStartLoader
from datasets.transforms import ReidTransforms
from datasets.transforms.build import first_resize
from inference.embedding.images import get_all_images, holds_images, is_image_name, report_passed_over
from inference.embedding.progress import Progress
from modelling.mirroring import embed_views
from utils.devices import count_workers, find_device
from utils.errors import MissingPathError, UserError
from utils.image import image_loader, pil_loader

Item = tuple[Any, int, str]
Transform = Callable[[Any], Any]


class ImageDataset(Dataset[Item]):
    """Images without labels; items are (image, -1, path).

    Args:
        dataset: paths of image files; or a folder or one image file, see :func:`get_all_images`.
        transform: applied to each RGB PIL image.
        loader: reads the file at a path as such an image.
    """

    def __init__(
        self,
        dataset: Iterable[str] | str | os.PathLike[str],
        transform: Transform | None = None,
        loader: Callable[[str], Any] = pil_loader,
    ) -> None:
        one = isinstance(dataset, str | os.PathLike)
        self.dataset = get_all_images(dataset) if one else list(dataset)  # type: ignore[arg-type]
        self.transform = transform
        self.loader = loader

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        path = str(self.dataset[index])
        image = self.loader(path)
        return image if self.transform is None else self.transform(image), -1, path


class ImageFolderWithPaths(ImageFolder):
    """torchvision's ImageFolder with items (image, number of the subfolder, path); it ignores empty subfolders.

    Which files are images, and what is said of others, is as in :func:`get_all_images`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        loader: Callable[[str], Any] = pil_loader,
        **kwargs: Any,
    ) -> None:
        chosen = kwargs.pop("is_valid_file", None)
        is_valid = chosen or is_image_name
        super().__init__(os.fspath(root), transform, target_transform, loader, is_valid_file=is_valid, **kwargs)
        if chosen is None:
            report_passed_over(root, in_subfolders=True)

    def find_classes(self, directory: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
        """The subfolders with images, sorted, and their numbers.

        Raises:
            MissingPathError: there are none.
        """
        folder = Path(directory)
        found = sorted(path.name for path in folder.iterdir() if holds_images(path)) if folder.is_dir() else []
        if not found:
            raise MissingPathError(f"{str(folder)!r} has no subfolder with images.")
        return found, {name: number for number, name in enumerate(found)}

    def __getitem__(self, index: int) -> Item:
        return (*super().__getitem__(index), self.samples[index][0])


def make_inference_data_loader(
    cfg: Any, path: str | os.PathLike[str], dataset_class: Callable[..., Dataset[Any]] = ImageDataset
) -> LateStartLoader:
    """A loader over the images of a folder, or over one image file, with the test transforms.

    Args:
        cfg: any object with INPUT, TEST.IMS_PER_BATCH and DATALOADER.NUM_WORKERS; INPUT may lack EXIF_ORIENTATION,
            DRAFT_DECODING and RESIZE.
        path: folder or file; of a folder without images the loader has length 0.
        dataset_class: ImageDataset, which takes the folder's own images, ImageFolderWithPaths, which takes those of its
            subfolders, or a class of one's own. That is called with ``path`` as it is here, the transforms
            (as ``transform=`` if it has that argument), and with ``loader=pil_loader`` (or the same without
            EXIF's orientation) if it has that argument.

    Returns:
        A loader of batches, in order: (images [B, 3, H, W], labels [B], paths), or what the class of one's own yields.

    Raises:
        UserError: there is no such file or folder, or ImageFolderWithPaths finds no subfolder with images; while
            iterating, a file cannot be read.
    """
    if isinstance(path, str | os.PathLike) and not (os.fspath(path) and Path(path).exists()):
        raise MissingPathError(f"{os.fspath(path)!r} does not exist; expected a folder of images or one image file.")
    if dataset_class is ImageFolderWithPaths and Path(path).is_file():
        dataset_class = ImageDataset
    transform = ReidTransforms(cfg).build_transforms(is_train=False)
    resize = first_resize(transform)
    load = image_loader(getattr(cfg.INPUT, "EXIF_ORIENTATION", True), resize.least if resize else None)
    return LateStartLoader(
        _build(dataset_class, path, transform, load),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        shuffle=False,
        num_workers=count_workers(cfg.DATALOADER.NUM_WORKERS),
        pin_memory=torch.cuda.is_available(),
    )


def _build(
    dataset_class: Callable[..., Dataset[Any]], path: Any, transform: Transform, loader: Callable[[str], Any]
) -> Dataset[Any]:
    parameters = inspect.signature(dataset_class).parameters
    keywords: dict[str, Any] = {"loader": loader} if "loader" in parameters else {}
    if "transform" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dataset_class(path, transform=transform, **keywords)
    return dataset_class(path, transform, **keywords)


def _inference(
    model: Any, batch: Sequence[Any], use_cuda: bool | None = None, normalize_with_bn: bool = True, flip: bool = False
) -> tuple[Tensor, Any]:
    """Embed one batch; switches the model to eval mode.

    Args:
        model: ``model.backbone(x)`` returns (feature map, features), ``model.bn`` is the BN neck.
        batch: (images [B, 3, H, W], labels, paths).
        use_cuda: whether to compute on CUDA (True) or on the CPU (False); the model is moved there if it is elsewhere.
            None computes where the model is.
        normalize_with_bn: False leaves the BN neck out.
        flip: average the embeddings with those of the mirror images.

    Returns:
        Embeddings [B, D] on the device of the model, without gradient, and the paths.

    Raises:
        UserError: use_cuda is True on a machine without CUDA.
    """

    def embed(images: Tensor) -> Tensor:
        _, features = model.backbone(images)
        return model.bn(features) if normalize_with_bn else features

    images, _, paths = batch
    _move(model, use_cuda)
    model.eval()
    # Not inference_mode: callers change the result in place, or compute gradients with it.
    with torch.no_grad():
        return embed_views(embed, images.to(_device_of(model), non_blocking=True), flip), paths


def run_inference(
    model: Any, loader: Iterable[Any], cfg: Any, print_freq: int = 10, use_cuda: bool | None = None
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Embed all batches of a loader; switches the model to eval mode and moves it to the device.

    Args:
        model: as for :func:`_inference`.
        loader: from :func:`make_inference_data_loader`, or any that yields (images, labels, paths).
        cfg: any object. GPU_IDS, the first of which is the CUDA device, TEST.FLIP and TRAINER.PROGRESS_BAR are read if
            it has them.
        print_freq: batches between two updates of the progress bar.
        use_cuda: whether to use CUDA; None uses it if there is a CUDA device and GPU_IDS is not empty.

    Returns:
        Embeddings [N, D] float32 and their paths [N].

    Raises:
        UserError: a file cannot be read, there are no images, or use_cuda is True on a machine without CUDA.
    """
    gpu_ids = getattr(cfg, "GPU_IDS", None)
    if use_cuda is None:
        use_cuda = torch.cuda.is_available() and (gpu_ids is None or len(gpu_ids) > 0)
    _move(model, use_cuda, gpu_ids[0] if gpu_ids else None)
    embeddings: list[Tensor] = []
    names: list[str] = []
    shown = getattr(getattr(cfg, "TRAINER", None), "PROGRESS_BAR", True)
    flip = getattr(getattr(cfg, "TEST", None), "FLIP", False)
    with Progress(_size_of(loader), print_freq, shown) as progress:
        for batch in loader:
            features, paths = _inference(model, batch, flip=flip)
            embeddings.append(features.float().cpu())
            names += paths
            progress.update(len(paths))
    if not names:
        raise UserError("the loader gave no images; look at len(loader) before, if that may happen.")
    return torch.cat(embeddings).numpy(), np.asarray(names)


def _move(model: Any, use_cuda: bool | None, gpu: int | None = None) -> None:
    """Move a model to CUDA (True), the device ``gpu`` if given, or to the CPU (False), unless it is there already."""
    here = _device_of(model)
    if use_cuda is None or (here.type == ("cuda" if use_cuda else "cpu") and gpu in (None, here.index)):
        return
    model.to(find_device(("cuda" if gpu is None else f"cuda:{gpu}") if use_cuda else "cpu"))


def _device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def _size_of(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):  # the loader may be any iterable of batches
        return None
