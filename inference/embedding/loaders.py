"""Loaders and loops for programs that embed with a model of their own.

:class:`inference.Embedder` does the same in one call, and faster.
"""

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
from yacs.config import CfgNode

from datasets.loading import LateStartLoader
from datasets.transforms import ReidTransforms
from inference.embedding.images import find_images, get_all_images, holds_images
from inference.embedding.progress import Progress
from utils.devices import count_cpus
from utils.errors import MissingPathError, UserError
from utils.image import pil_loader

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
    """torchvision's ImageFolder with items (image, number of the subfolder, path); it ignores empty subfolders."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform | None = None,
        target_transform: Transform | None = None,
        loader: Callable[[str], Any] = pil_loader,
        **kwargs: Any,
    ) -> None:
        super().__init__(os.fspath(root), transform, target_transform, loader, **kwargs)

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
    cfg: CfgNode, path: str | os.PathLike[str], cls: Callable[..., Dataset[Item]] = ImageDataset
) -> LateStartLoader:
    """A loader over the images of a folder, or over one image file, with the test transforms.

    Args:
        cfg: configuration, of which INPUT, TEST.IMS_PER_BATCH and DATALOADER.NUM_WORKERS are read.
        path: folder or file.
        cls: ImageDataset, which takes the folder's own images, ImageFolderWithPaths, which takes those of its
            subfolders, or another class that is called like them.

    Returns:
        A loader of batches (images [B, 3, H, W], labels [B], paths), in order.

    Raises:
        UserError: there are no images; while iterating, a file cannot be read.
    """
    transform = ReidTransforms(cfg).build_transforms(is_train=False)
    by_folder = isinstance(cls, type) and issubclass(cls, ImageFolder)
    if by_folder and Path(path).is_file():
        cls, by_folder = ImageDataset, False
    dataset = cls(os.fspath(path) if by_folder else find_images(path), transform)
    workers = cfg.DATALOADER.NUM_WORKERS
    return LateStartLoader(
        dataset,
        batch_size=cfg.TEST.IMS_PER_BATCH,
        shuffle=False,
        num_workers=count_cpus() if workers == -1 else workers,
        pin_memory=torch.cuda.is_available(),
    )


def _inference(model: Any, batch: Sequence[Any], use_cuda: bool | None = None) -> tuple[Tensor, Any]:
    """Embed one batch.

    Args:
        model: in eval mode; ``model.backbone(x)`` returns (feature map, features), ``model.bn`` is the BN neck.
        batch: (images [B, 3, H, W], labels, paths).
        use_cuda: whether to move the images to the CUDA device; None moves them to the model's device.

    Returns:
        Embeddings [B, D] on the device of the model, and the paths.
    """
    images, _, paths = batch
    device = next(model.parameters()).device if use_cuda is None else torch.device("cuda" if use_cuda else "cpu")
    with torch.inference_mode():
        _, features = model.backbone(images.to(device, non_blocking=True))
        return model.bn(features), paths


def run_inference(
    model: Any, loader: Iterable[Any], cfg: CfgNode, print_freq: int = 10, use_cuda: bool | None = None
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Embed all batches of a loader; switches the model to eval mode and moves it to the device.

    Args:
        model: as for :func:`_inference`.
        loader: from :func:`make_inference_data_loader`.
        cfg: configuration, of which GPU_IDS and TRAINER.PROGRESS_BAR are read.
        print_freq: batches between two updates of the progress bar.
        use_cuda: whether to use CUDA; None uses it if there is a CUDA device and GPU_IDS is not empty.

    Returns:
        Embeddings [N, D] float32 and their paths [N].

    Raises:
        UserError: a file cannot be read, or there are no images.
    """
    if use_cuda is None:
        use_cuda = torch.cuda.is_available() and len(cfg.GPU_IDS) > 0
    device = torch.device("cuda", cfg.GPU_IDS[0] if len(cfg.GPU_IDS) else 0) if use_cuda else torch.device("cpu")
    model = model.eval().to(device)
    embeddings: list[Tensor] = []
    names: list[str] = []
    with Progress(_size_of(loader), print_freq, cfg.TRAINER.PROGRESS_BAR) as progress:
        for batch in loader:
            features, paths = _inference(model, batch)
            embeddings.append(features.float().cpu())
            names += paths
            progress.update(len(paths))
    if not names:
        raise UserError("the loader gave no images.")
    return torch.cat(embeddings).numpy(), np.asarray(names)


def _size_of(loader: Any) -> int | None:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):  # the loader may be any iterable of batches
        return None
