"""The embedding network of a checkpoint as one file that runs without this code: ONNX, TorchScript or torch.export."""

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from checkpoints.digest import digest_of
from datasets.transforms.build import eval_transforms
from datasets.transforms.pixels import ResizedPlanes
from evaluation.calibration import read_calibration
from modelling.backbones.resnet import ResNet
from modelling.bases import EmbeddingPath, ModelBase
from modelling.origin import embedding_settings
from utils.compat import ONNX_NEEDS_ONNXSCRIPT, export_onnx, export_program, program_module
from utils.distances import normalize
from utils.errors import UnknownNameError, UserError
from utils.files import written_whole
from utils.optional import require

RunFile = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # images -> embeddings, by the written file

INPUT, OUTPUT = "images", "embeddings"
METADATA = "preprocessing"  # the key in ONNX; the file preprocessing.json inside the others
MIN_COSINE, MAX_RELATIVE_ERROR = 0.99999, 1e-4  # of the written file against torch
# Or, where that is more, so many times the rounding of torch itself, which instance norm magnifies on plain areas.
MAX_ROUNDINGS = 10

_IMAGES = 4  # images of noise, and as many of smooth colours and white, on which the file is tried


class EmbeddingNetwork(nn.Module):
    """Images to embeddings: a path of a model, whose modules are changed, and optional scaling to unit length."""

    def __init__(self, path: EmbeddingPath, unit: bool = False) -> None:
        super().__init__()
        self.path, self.unit = path, unit
        backbone: Any = path.backbone
        backbone.choose_computation(channels_last=False, grad_checkpoint=False)  # the runtime decides
        if isinstance(backbone.base, ResNet) and hasattr(backbone.base, "fc"):
            del backbone.base.fc  # never used
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] normalised as the metadata says -> [B, D]."""
        embeddings = self.path(images)
        return normalize(embeddings) if self.unit else embeddings


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str,
    *,
    unit: bool = False,
    dynamic_batch: bool = False,
    size: tuple[int, int] | None = None,
    network: str = "",
    calibration: str | os.PathLike[str] = "",
) -> dict[str, Any]:
    """Write the network of a checkpoint to a file, run the file, and keep it only if it agrees with torch.

    Args:
        checkpoint: checkpoint of this project or of the original.
        output: the file to write.
        format: "onnx", "torchscript" or "torch_export".
        unit: scale embeddings to unit length in the network.
        dynamic_batch: take any number of images at once instead of one; TorchScript always does.
        size: height and width of the images; INPUT.SIZE_TEST of the checkpoint if None.
        network: as for :meth:`inference.embedding.embedder.Embedder.from_checkpoint`.
        calibration: a file of :func:`evaluation.calibration.write_calibration`, kept in the metadata; "" for none.

    Returns:
        The metadata, and the results of the comparison: ``cosine`` (the lowest) and ``relative_error`` (the largest
        absolute difference within an embedding, divided by its largest absolute value).

    Raises:
        UnknownNameError: the format is unknown.
        UserError: the checkpoint cannot be used or is the output, a package is missing, the output cannot be written,
            torch fails to write the format, the written file disagrees with torch, or the calibration is of other
            embeddings.
    """
    check_output(checkpoint, output, format)
    model = ModelBase.load_from_checkpoint(checkpoint, cfg={"MODEL": {"NAME": network}})
    metadata = _metadata(model, Path(checkpoint), unit, dynamic_batch or format == "torchscript", size)
    if calibration:
        metadata["calibration"] = _checked_calibration(os.fspath(calibration), model, metadata)
    exported = EmbeddingNetwork(EmbeddingPath(model, model.hparams.TEST.FLIP), unit)
    height, width = metadata["image_size"]
    example = torch.randn(2 if dynamic_batch else 1, 3, height, width)
    with written_whole(output, keep_ending=True) as temporary, torch.no_grad():
        temporary.touch()  # report a folder that is not writable in our words, not in the exporter's
        exported(example)  # a transformer gets ready for a size of its own before it is traced
        with quiet():
            run = _write(format, exported, example, temporary, dynamic_batch, json.dumps(metadata))
        images = trial_images(metadata["image_size"], *scaling_in(metadata))
        batches = images.split([1] * len(images) if metadata["batch"] == 1 else [1, len(images) - 3, 2])
        cosine, error = compare(exported, run, batches)
        if disagreement := find_disagreement(exported, cosine, error, batches):
            raise UserError(f"{output} was not written: the exported network disagrees with torch ({disagreement}).")
    return {**metadata, "cosine": cosine, "relative_error": error}


def check_output(checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], format: str) -> None:
    """Raise a UserError if a checkpoint cannot be exported to this file or format, whatever is in it."""
    if format not in WRITERS:
        raise UnknownNameError(f"the format is {format!r}; valid names: {', '.join(WRITERS)}.")
    if Path(output).is_dir():
        raise UserError(f"{os.fspath(output)!r} is a folder; expected the name of a file.")
    if Path(output).exists() and Path(checkpoint).exists() and Path(output).samefile(checkpoint):
        raise UserError(f"{output} is the checkpoint itself, which would be overwritten; name another output file.")
    if format == "onnx":
        for package in ("onnx", "onnxruntime"):
            require(package, "export", "--format onnx")


def _write(format: str, network: nn.Module, *args: Any) -> RunFile:
    try:
        return WRITERS[format](network, *args)
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters raise exceptions of their own, which differ between versions of torch
        lines = str(error).strip().splitlines()
        raise UserError(
            f"torch {torch.__version__} cannot write this network as {format} ({type(error).__name__}"
            f"{f': {lines[0]}' if lines else ''}); choose another format or a newer torch."
        ) from error


def scaling_in(metadata: dict[str, Any]) -> tuple[list[float], list[float], str]:
    """Mean and deviation of the channels, and how images are brought to their size."""
    return metadata["pixel_mean"], metadata["pixel_std"], metadata["resize_mode"]


def trial_images(size: Sequence[int], mean: Sequence[float], std: Sequence[float], resize: str = "stretch") -> Tensor:
    """Images of noise, smooth colours and white, normalised: [8, 3, H, W] float32."""
    height, width = size
    transform = eval_transforms((height, width), mean, std, resize)
    rng = np.random.default_rng(0)
    # A few pixels, enlarged, give smooth areas and edges as in real images; the last image is all white.
    small = [Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)) for _ in range(_IMAGES - 1)]
    smooth = [transform(image) for image in (*small, Image.new("RGB", (width, height), "white"))]
    noise = torch.randn(_IMAGES, 3, height, width, generator=torch.Generator().manual_seed(0))
    return torch.cat([noise, torch.stack(smooth)])


def find_disagreement(network: nn.Module, cosine: float, error: float, batches: Sequence[Tensor]) -> str:
    """What :func:`compare` measured if that is more than rounding explains; "" if a file agrees with the network."""
    allowed = MAX_RELATIVE_ERROR
    if error > allowed:
        allowed = max(allowed, MAX_ROUNDINGS * _rounding(network, batches))
    if cosine >= MIN_COSINE and error <= allowed:
        return ""
    return (
        f"cosine {cosine:.7f}, needed at least {MIN_COSINE}; relative error {error:.1e}, allowed at most {allowed:.1e}"
    )


def compare(network: nn.Module, run: RunFile, batches: Iterable[Tensor]) -> tuple[float, float]:
    """Lowest cosine and largest relative error of ``run`` against the network, [B, 3, H, W] float32 each batch."""
    cosines, errors = [], []
    for batch in batches:
        expected = network(batch).double()
        found = torch.from_numpy(run(batch.numpy())).double()
        if found.shape != expected.shape:
            raise UserError(
                f"the exported network gives the shape {list(found.shape)}; expected {list(expected.shape)}."
            )
        difference = (found - expected).abs().amax(1)
        error = (difference / expected.abs().amax(1)).nan_to_num(torch.inf)
        cosine = torch.nn.functional.cosine_similarity(found, expected).nan_to_num(-1)
        # Equal embeddings agree, even if they are all zero.
        errors.append(error.masked_fill(difference == 0, 0).max())
        cosines.append(cosine.masked_fill(difference == 0, 1).min())
    return float(min(cosines)), float(max(errors))


def _rounding(network: nn.Module, batches: Iterable[Tensor]) -> float:
    """Largest relative error of the network's float32 against its float64; 0 if it cannot compute in float64."""
    exact = copy.deepcopy(network).double()
    try:
        return compare(
            exact, lambda images: network(torch.from_numpy(images).float()).numpy(), [b.double() for b in batches]
        )[1]
    except RuntimeError:  # a network of one's own that names a type
        return 0.0


def _metadata(
    model: ModelBase, checkpoint: Path, unit: bool, any_batch: bool, size: tuple[int, int] | None
) -> dict[str, Any]:
    options = model.hparams
    image_size = [int(side) for side in size or options.INPUT.SIZE_TEST]
    resize = ResizedPlanes.of_mode(image_size, options.INPUT.RESIZE, options.INPUT.PIXEL_MEAN)
    with checkpoint.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "input": INPUT,
        "output": OUTPUT,
        "batch": "any" if any_batch else 1,
        "layout": "NCHW",
        "channels": "RGB",
        "dtype": "float32",
        "image_size": image_size,  # height, width
        "exif_orientation": bool(options.INPUT.EXIF_ORIENTATION),  # whether images are turned upright first
        "draft_decoding": bool(options.INPUT.DRAFT_DECODING),  # whether image.draft(None, (width, height)) comes before
        "resize": "bilinear with antialiasing, as Pillow",
        "resize_mode": options.INPUT.RESIZE,
        "border": resize.fill and list(resize.fill),  # red, green, blue of resize_mode "pad", which centres an image
        "pixel_range": [0.0, 1.0],  # before mean and std
        "pixel_mean": [float(value) for value in options.INPUT.PIXEL_MEAN],
        "pixel_std": [float(value) for value in options.INPUT.PIXEL_STD],
        "embedding_size": model.bn.num_features,
        "flip": bool(options.TEST.FLIP),  # whether the network averages with the mirror image; it does so itself
        **embedding_settings(options),
        "normalized": unit,
        "weights": digest_of({"backbone": model.backbone, "bn": model.bn}),
        "network": options.MODEL.NAME,
        "source": checkpoint.name,
        "source_sha256": digest,
        "exporter": f"torch {torch.__version__}",
    }


def _checked_calibration(file: str, model: ModelBase, metadata: dict[str, Any]) -> dict[str, Any]:
    calibration = read_calibration(file)
    if metadata["normalized"] and calibration.metric != "cosine" and not calibration.normalize:
        raise UserError(
            f"the calibration in {file} is of embeddings as they are, but --normalize exports a network that scales "
            "them to unit length: make the calibration with --normalize."
        )
    if calibration.normalize and calibration.metric != "cosine" and not metadata["normalized"]:
        raise UserError(
            f"the calibration in {file} is of embeddings of unit length, which this network does not give: give "
            "--normalize."
        )
    names = {"size": "image_size", "mean": "pixel_mean", "std": "pixel_std", "resize": "resize_mode"}
    names |= {
        name: name
        for name in ("weights", "exif_orientation", "draft_decoding", "flip", *embedding_settings(model.hparams))
    }
    calibration.check_network({key: metadata[name] for key, name in names.items()}, file)
    return calibration.to_dict()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters say about themselves: the file that they write is tried afterwards."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            # Instance normalisation uses the statistics of the image, as it does in training.
            warnings.filterwarnings("ignore", message=".*instance_norm.*train=True")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def onnx_content(network: nn.Module, size: Sequence[int]) -> bytes:
    """A network as ONNX, for any number of images of one size; the content of a file that is not kept."""
    if ONNX_NEEDS_ONNXSCRIPT:
        require("onnxscript", "export", "an export to ONNX")
    example = torch.randn(2, 3, *size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), quiet():
        network(example)  # a transformer gets ready for a size of its own before it is traced
        export_onnx(network, example, Path(folder) / "network.onnx", INPUT, OUTPUT, dynamic_batch=True)
        return (Path(folder) / "network.onnx").read_bytes()


def _write_onnx(network: nn.Module, example: Tensor, path: Path, dynamic_batch: bool, metadata: str) -> RunFile:
    if ONNX_NEEDS_ONNXSCRIPT:
        require("onnxscript", "export", "--format onnx")
    export_onnx(network, example, path, INPUT, OUTPUT, dynamic_batch)
    onnx, onnxruntime = (require(name, "export", "--format onnx") for name in ("onnx", "onnxruntime"))
    model = onnx.load(str(path))
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]  # stack traces, which name folders of this machine
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _write_torchscript(network: nn.Module, example: Tensor, path: Path, dynamic_batch: bool, metadata: str) -> RunFile:
    traced = torch.jit.trace(network, (example,), check_trace=False)
    buffer = io.BytesIO()  # given a path, torch reports a full disk as a failed writer
    torch.jit.save(traced, buffer, _extra_files={f"{METADATA}.json": metadata})
    path.write_bytes(buffer.getvalue())
    loaded = torch.jit.load(str(path))
    return lambda images: loaded(torch.from_numpy(images)).numpy()


def _write_torch_export(network: nn.Module, example: Tensor, path: Path, dynamic_batch: bool, metadata: str) -> RunFile:
    program = export_program(network, example, dynamic_batch)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    buffer = io.BytesIO()  # given a path, torch insists on the suffix .pt2
    torch.export.save(program, buffer, extra_files={f"{METADATA}.json": metadata})
    path.write_bytes(buffer.getvalue())
    module = program_module(torch.export.load(io.BytesIO(path.read_bytes())))
    return lambda images: module(torch.from_numpy(images)).numpy()


_Writer = Callable[[nn.Module, Tensor, Path, bool, str], RunFile]
WRITERS: dict[str, _Writer] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "torch_export": _write_torch_export,
}
