"""Embeddings of images by a trained model."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

from config.defaults import _C as DEFAULTS
from datasets.transforms.pixels import ResizedPlanes, normalise
from inference.embedding.engines import Computation, ExportedModel, Model, describe, is_exported, network_of
from inference.embedding.images import find_images, read_batches
from inference.embedding.inputs import as_sequence
from inference.embedding.progress import Progress
from inference.embedding.tracks import Track, embed_tracks
from modelling.bases import ModelBase
from modelling.from_weights import model_of_weights
from modelling.hyperparameters import merge_hparams
from modelling.mirroring import embed_views
from utils.devices import count_cpus, find_device, inference_dtype
from utils.errors import NotACtlCheckpointError, UserError

Embeddings = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddedBatch:
    """Embeddings of consecutive inputs, and the errors of those that could not be read."""

    start: int  # position of the batch's first input among all inputs
    embeddings: Embeddings  # [B, D]; an input that could not be read has no row
    kept: list[int]  # [B] position of each row among all inputs
    errors: dict[int, UserError]  # position among all inputs -> why the input could not be read


class Scaling(TypedDict, total=False):
    """What of the images may differ from the model's configuration."""

    size: Sequence[int] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


class Embedder:
    """A trained model that embeds images; the numbers are those of ``model(images)`` up to rounding.

    Batch norm is folded into the convolutions of a ResNet of this project (see :mod:`inference.embedding.folding`), and
    images are decoded while the network computes. The given model is copied and not modified.

    Args:
        model: a model of this project, or a file of it (:class:`inference.embedding.engines.ExportedModel`).
        device: "auto" (a CUDA device or MPS if there is one, else the CPU), or a device of torch: "cpu", "cuda",
            "cuda:1", "mps".
        precision: one of Lightning's: 32-true, 64-true, bf16-true, bf16-mixed, 16-true, 16-mixed.
        engine: what computes: "torch"; "onnxruntime" or "openvino", on the CPU, whose embeddings differ from torch's by
            at most 1e-4 of their largest number (or by what torch itself rounds); or "auto", the fastest that is
            installed (see :mod:`inference.embedding.engines`), or torch where that fails.
        batch_size: images in a batch; None takes TEST.IMS_PER_BATCH of the model.
        num_workers: threads that decode images; 0 decodes in the calling thread. -1 takes one thread for each CPU core,
            or one for every eight if the network runs on the CPU, since more would only slow it down.
        scaling: ``size``, height and width that images are resized to, without it INPUT.SIZE_TEST of the model; and
            ``mean`` and ``std`` of the channels, without them those of the model.

    Attributes:
        engine: what computes, which is not "auto".
        exif_orientation: whether images are turned upright as their EXIF data says: INPUT.EXIF_ORIENTATION of the
            model; may be set.
        draft_decoding: whether files of large JPEG images are decoded at a part of their size: INPUT.DRAFT_DECODING of
            the model; may be set.
        dimension: length of an embedding (D).
        resize: how images are brought to the size, "stretch" or "pad": INPUT.RESIZE of the model; may be set.
        flip: whether an embedding is the mean of those of an image and its mirror image: TEST.FLIP of the model; may be
            set.

    Raises:
        UserError: the device does not exist, or the precision is unknown or not supported by the device or the engine,
            or the engine is unknown, its package missing, or it cannot compute the network.

    Example:
        >>> from PIL import Image
        >>> cfg = {"MODEL": {"NAME": "resnet18", "BACKBONE_EMB_SIZE": 512, "PRETRAINED": False}}
        >>> model = ModelBase(cfg, num_classes=2)  # random weights; Embedder.from_checkpoint reads trained ones
        >>> embedder = Embedder(model, "cpu", size=(64, 32))
        >>> embedder.embed(Image.new("RGB", (20, 40))).shape
        (1, 512)
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device = "auto",
        precision: str = "32-true",
        *,
        engine: str = "torch",
        batch_size: int | None = None,
        num_workers: int = -1,
        **scaling: Unpack[Scaling],
    ) -> None:
        options = model.hparams.INPUT
        if unknown := scaling.keys() - Scaling.__optional_keys__:
            raise TypeError(f"Embedder() got an unexpected keyword argument {min(unknown)!r}")
        size, mean, std = (scaling.get(key) for key in ("size", "mean", "std"))
        self.device = find_device(device)
        self.dtype = inference_dtype(precision, self.device)
        self.size: tuple[int, ...] = tuple(options.SIZE_TEST if size is None else size)  # type: ignore[arg-type]
        self.mean = tuple(options.PIXEL_MEAN if mean is None else mean)  # type: ignore[arg-type]
        self.std = tuple(options.PIXEL_STD if std is None else std)  # type: ignore[arg-type]
        self.exif_orientation = bool(options.EXIF_ORIENTATION)
        self.draft_decoding = bool(options.DRAFT_DECODING)
        self.resize: str = options.RESIZE
        is_file = isinstance(model, ExportedModel)  # which averages with the mirror image itself
        self.flip = bool(model.hparams.TEST.FLIP) and not is_file
        usual = DEFAULTS if is_file else model.hparams
        self.batch_size = usual.TEST.IMS_PER_BATCH if batch_size is None else batch_size
        self.num_workers = _choose_workers(self.device) if num_workers == -1 else num_workers
        if len(self.size) != 2 or min(self.size) < 1 or self.batch_size < 1 or self.num_workers < 0:
            raise UserError(
                f"size is {self.size}, batch_size {self.batch_size}, num_workers {num_workers}; expected (height, "
                "width), 1 or more, -1 or more."
            )
        if not all(len(v) == 3 and np.isfinite(v).all() for v in (self.mean, self.std)) or min(self.std) <= 0:
            raise UserError(f"mean is {self.mean}, std {self.std}; expected three numbers each, of std above 0.")
        how = Computation(engine, self.device, self.dtype, self.size, self.mean, self.std, self.batch_size)
        self.network, self.engine = network_of(model, how)
        self.dimension, self.settings, self.weights_digest = describe(model)
        self._mean, self._std = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (self.mean, self.std))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        precision: str = "32-true",
        network: str = "",
        cfg: CfgNode | None = None,
        **kw: Any,
    ) -> "Embedder":
        """Load a checkpoint of this project or of the original, with the image size and scaling that it records.

        Args:
            path: the checkpoint file; or one of ``inference/export.py --format onnx --dynamic-batch`` (or ``--int8``),
                whose name ends in .onnx, for another engine than torch. ``network`` and ``cfg`` do not matter then.
            device, precision, kw: as for the constructor; ``engine="auto"`` is one of them.
            network: MODEL.NAME, for a file that holds the weights of a backbone alone, whose pooled features are then
                the embeddings; and again, if it is code of your own: a file alone does not decide which code is
                imported. "" takes that of ``cfg``.
            cfg: what else is to be known of a network whose weights alone are in the file, such as its stem, image size
                and scaling: a configuration, as load_config returns it. None takes the defaults. A CTL checkpoint has
                its own settings, and keeps them.

        Raises:
            UserError: the file is missing, cut off, or neither a CTL checkpoint nor weights of ``network``; or as for
                the constructor.
        """
        if not isinstance(network, str):
            raise UserError(f"network is {network!r}; expected its place as text, such as 'my_package.nets:tiny'.")
        if is_exported(path):
            return cls(ExportedModel(path), device, precision, **kw)
        name = network or ("" if cfg is None else cfg.MODEL.NAME)
        try:
            model = ModelBase.load_from_checkpoint(path, cfg={"MODEL": {"NAME": name}})
        except NotACtlCheckpointError as refusal:
            if not name:
                raise NotACtlCheckpointError(f"{refusal} In a program, network= or cfg= names its network.") from None
            named = {"MODEL": {"NAME": name, "BACKBONE_EMB_SIZE": 0}}
            whole = merge_hparams(DEFAULTS if cfg is None else cfg, named)
            model = model_of_weights(ModelBase, path, whole, refusal, num_classes=1)
        return cls(model, device, precision, **kw)

    @property
    def identity(self) -> dict[str, Any]:
        """What embeddings must share to be comparable: weights, images, scaling, pooling, flip, precision and so on."""
        return {
            "weights": self.weights_digest,
            "dimension": self.dimension,
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "exif_orientation": self.exif_orientation,
            "draft_decoding": self.draft_decoding,
            "resize": self.resize,
            "flip": self.flip,
            "dtype": str(self.dtype).removeprefix("torch."),
            **self.settings,
        }

    def embed(self, images: Any, batch_size: int | None = None) -> Embeddings:
        """Embed images.

        Args:
            images: one image or several: paths of image files, their bytes, open binary files, PIL images, uint8 arrays
                [H, W, 3] in the order red, green, blue (or one array [N, H, W, 3]), grey [H, W] or [H, W, 1] or with
                opacity [H, W, 4], uint16 arrays [H, W] or [H, W, 1]; or a float tensor [N, 3, H, W] that is already
                resized and normalised.
            batch_size: images in a batch; None takes that of the constructor.

        Returns:
            [N, D] float32; [0, D] for no images.

        Raises:
            UserError: a file cannot be read (the message names it), an input is not an image or has no pixels (the
                message names its position), or embeddings are not finite.
        """
        batch_size = self._batch_size(batch_size)
        sources = as_sequence(images)
        if isinstance(sources, Tensor):
            parts = [self._compute(part.to(self.device)) for part in sources.split(batch_size) if len(part)]
        else:
            parts = [batch.embeddings for batch in self.embed_batches(sources, batch_size=batch_size)]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *parts])

    def embed_folder(
        self,
        path: str | os.PathLike[str],
        in_subfolders: bool = False,
        on_error: str = "stop",
        *,
        print_freq: int | None = None,
        progress: bool = False,
    ) -> tuple[Embeddings, list[str]]:
        """Embed the images of a folder, or one image file.

        Args:
            path: a folder, whose image files are taken in sorted order, or a file.
            in_subfolders: take the images in and below its subfolders instead.
            on_error: "stop" at a file that cannot be read, or "skip" it.
            print_freq: batches between two updates of the progress bar.
            progress: whether to show a progress bar.

        Returns:
            embeddings [N, D] float32, and the paths of the N images, which begin with ``path``.

        Raises:
            UserError: the folder does not exist or holds no images, or a file cannot be read (the message names it).
        """
        paths = find_images(path, in_subfolders)
        parts: list[Embeddings] = []
        kept: list[str] = []
        with Progress(len(paths), print_freq, progress) as bar:
            for batch in self.embed_batches(paths, on_error):
                parts.append(batch.embeddings)
                kept += [paths[position] for position in batch.kept]
                bar.update(len(batch.kept) + len(batch.errors))
        return np.concatenate(parts), kept

    def embed_tracks(
        self, tracks: Mapping[Track, Any], aggregation: str = "mean", batch_size: int | None = None
    ) -> tuple[Embeddings, list[Track]]:
        """Embed tracks, all crops of all tracks in the same batches.

        Args:
            tracks: track -> its crops, one or several, each as for :meth:`embed`.
            aggregation: how crops become the embedding of their track: "mean", "medoid" or "robust", the mean without
                outliers (see :func:`utils.aggregation.aggregate`).
            batch_size: as for :meth:`embed`.

        Returns:
            embeddings [T, D] float32, and the T tracks in the order of ``tracks``.

        Raises:
            UserError: a track has no crops, or a crop cannot be read (the message names both), or there is no such
                aggregation.
        """
        return embed_tracks(self, tracks, aggregation, batch_size)

    def embed_batches(
        self, sources: Sequence[Any], on_error: str = "stop", batch_size: int | None = None
    ) -> Generator[EmbeddedBatch, None, None]:
        """Embed images batch by batch, in order, holding only a few batches in memory.

        Args:
            sources: paths, files, PIL images or arrays, as for :meth:`embed`.
            on_error: "stop" at an image that cannot be read, before its batch is computed, or "skip" it.
            batch_size: images in a batch; None takes that of the constructor.

        Raises:
            UserError: an image cannot be read and on_error is "stop", or on_error is neither.
        """
        size = self._batch_size(batch_size)
        cut = ([sources[i] for i in range(a, min(a + size, len(sources)))] for a in range(0, len(sources), size))
        return self._embed_batches(cut, on_error, len(sources))

    def embed_given_batches(
        self, batches: Iterable[Sequence[Any]], on_error: str = "stop"
    ) -> Generator[EmbeddedBatch, None, None]:
        """As :meth:`embed_batches`, but the caller says what the batches are.

        Args:
            batches: batches of images, as for :meth:`embed`; two of them are read while one is computed. An empty one
                gives an empty one.
            on_error: as there. Errors of what is no file do not name its position; ``errors`` of a batch does.
        """
        return self._embed_batches(batches, on_error, None)

    def _embed_batches(
        self, batches: Iterable[Sequence[Any]], on_error: str, total: int | None
    ) -> Generator[EmbeddedBatch, None, None]:
        if on_error not in ("stop", "skip"):
            raise UserError(f"on_error is {on_error!r}; valid: stop, skip.")
        workers = 0 if total is not None and total < 2 else self.num_workers
        pin_memory = self.device.type == "cuda"
        resize = ResizedPlanes.of_mode(self.size, self.resize, self.mean, self.draft_decoding)
        start = 0
        for batch in read_batches(batches, resize, workers, pin_memory, self.exif_orientation, total):
            if batch.errors and on_error == "stop":
                raise batch.errors[min(batch.errors)]
            good = [position for position in range(len(batch.pixels)) if position not in batch.errors]
            pixels = batch.pixels[good] if batch.errors else batch.pixels
            yield EmbeddedBatch(
                start,
                self.embed_pixels(pixels) if good else np.empty((0, self.dimension), np.float32),
                [start + position for position in good],
                {start + position: error for position, error in sorted(batch.errors.items())},
            )
            start += len(batch.pixels)

    def embed_pixels(self, pixels: Tensor) -> Embeddings:
        """Embed resized images, uint8 [B, 3, height, width]: [B, D] float32."""
        return self._compute(normalise(pixels.to(self.device, non_blocking=True), self._mean, self._std))

    def _batch_size(self, wanted: int | None) -> int:
        if wanted is not None and wanted < 1:
            raise UserError(f"batch_size is {wanted}; expected 1 or more, or None for {self.batch_size}.")
        return self.batch_size if wanted is None else wanted

    def _compute(self, x: Tensor) -> Embeddings:
        with torch.inference_mode():
            embeddings = embed_views(self.network, x, self.flip).float().cpu().numpy()
        bad = ~np.isfinite(embeddings).all(1)
        if bad.any():
            raise UserError(
                f"{bad.sum()} of {len(bad)} embeddings of a batch are not finite, the first that of its image "
                f"{bad.argmax()} (from 0): the weights of the model are damaged, or too large for "
                f"{str(self.dtype).removeprefix('torch.')}; try the precision 32-true, or another checkpoint."
            )
        return embeddings


def _choose_workers(device: torch.device) -> int:
    return max(1, count_cpus() // 8) if device.type == "cpu" else count_cpus()
