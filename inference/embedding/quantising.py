"""Static int8 quantisation of an exported network, calibrated on the user's own images."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datasets.transforms.pixels import ResizedPlanes, normalise
from inference.embedding.embedder import Embedder
from inference.embedding.engines import ExportedModel
from inference.embedding.exporting import INPUT, METADATA
from inference.embedding.images import is_image_name, read_batches
from utils.errors import MissingPathError, UserError
from utils.files import written_whole
from utils.optional import require

IMAGES = 200  # for calibration, and a quarter of that held out
WARN_BELOW, REFUSE_BELOW = 0.98, 0.9  # cosine of int8 to float32: the least, the mean
_BATCH = 8


def quantise(exported: str | os.PathLike[str], output: str | os.PathLike[str], paths: Sequence[str]) -> dict[str, Any]:
    """Write an int8 copy of an exported network, and measure what it costs on images that were held out.

    Weights are int8, symmetric, with a scale for each channel; what flows between layers is uint8 with the least and
    largest value that calibration found. Every fifth image is held out.

    Args:
        exported: a file of :func:`inference.embedding.exporting.export_checkpoint`, ONNX with a dynamic batch.
        output: the file to write.
        paths: image files, five or more.

    Returns:
        The metadata of the new file. ``int8`` in it has ``images`` (number used for calibration), ``held_out``, and
        ``cosine_mean`` and ``cosine_least`` of the embeddings of held-out images to those in float32.

    Raises:
        UserError: there are too few images or one cannot be read, ONNX Runtime cannot quantise the network, the mean
            cosine is below REFUSE_BELOW, or the output cannot be written.
    """
    require("onnxruntime.quantization", "export", "--int8")
    if len(paths) < 5:
        raise UserError(f"--int8 names {len(paths)} images; expected five or more, better {IMAGES * 5 // 4}.")
    held_out = list(paths[2::5])
    calibration = [path for number, path in enumerate(paths) if number % 5 != 2]
    before = Embedder(ExportedModel(exported), "cpu", engine="onnxruntime", batch_size=_BATCH)
    with written_whole(output, keep_ending=True) as temporary:
        temporary.touch()  # report a folder that is not writable in our words
        content = _quantised(os.fspath(exported), before, calibration)
        facts = json.loads(json.dumps(ExportedModel(exported).facts))
        facts["int8"] = {"digest": hashlib.sha256(content).hexdigest(), "images": len(calibration)}
        _write(content, facts, temporary)
        after = Embedder(ExportedModel(temporary), "cpu", engine="onnxruntime", batch_size=_BATCH)
        cosines = cosine(before.embed(held_out), after.embed(held_out))
        mean, least = float(cosines.mean()), float(cosines.min())
        if not mean >= REFUSE_BELOW:
            raise UserError(
                f"{output} was not written: int8 does not suit {facts['network']}, whose embeddings have a cosine of "
                f"{mean:.4f} to those in float32 (mean of {len(held_out)} held-out images); needed {REFUSE_BELOW}."
            )
        facts["int8"] |= {"held_out": len(held_out), "cosine_mean": mean, "cosine_least": least}
        _write(content, facts, temporary)
    return facts


def choose_images(source: str | os.PathLike[str], count: int = IMAGES) -> list[str]:
    """Image files taken evenly from a folder and its subfolders or from a list: ``count`` and a quarter to hold out.

    Args:
        source: a folder, or a text file with a path in each line; relative paths start from its folder.
        count: images for calibration.

    Raises:
        UserError: there is no such folder or list, it cannot be read, or it names no images.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(str(path) for path in source.rglob("*") if is_image_name(path.name) and path.is_file())
    elif source.is_file():
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--int8 {source} cannot be read ({error}); expected a text file of paths.") from error
        found = [str(source.parent / line.strip()) for line in lines if line.strip()]
    else:
        raise MissingPathError(f"--int8 names {str(source)!r}, which does not exist; expected a folder or a list.")
    if not found:
        raise UserError(
            f"--int8 names {str(source)!r}, which holds no images; expected some like those to be embedded."
        )
    rows = np.linspace(0, len(found) - 1, min(len(found), count + count // 4)).round().astype(int)
    return [found[row] for row in rows]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the rows of a and b, [N, D] each: [N]."""
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).clip(1e-12)


def _quantised(exported: str, embedder: Embedder, paths: Sequence[str]) -> bytes:
    quantization = require("onnxruntime.quantization", "export", "--int8")
    preparing = require("onnxruntime.quantization.shape_inference", "export", "--int8")
    types, level = quantization.QuantType, logging.root.level
    base: Any = quantization.CalibrationDataReader
    batches = (batch.numpy() for batch in _normalised(embedder, paths))

    class Reader(base):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder:
        prepared, output = f"{folder}/prepared.onnx", f"{folder}/int8.onnx"
        try:
            logging.root.setLevel(logging.ERROR)  # onnxruntime gives advice on the root logger
            preparing.quant_pre_process(exported, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                output,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                # With signed values between layers, ONNX Runtime is several times slower on CPUs of Intel and AMD.
                activation_type=types.QUInt8,
                weight_type=types.QInt8,
                extra_options={"WeightSymmetric": True},
            )
        except (UserError, OSError):
            raise
        except Exception as error:  # onnxruntime raises exceptions of many kinds
            first = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"onnxruntime cannot quantise this network ({type(error).__name__}: {first}); leave out --int8."
            ) from error
        finally:
            logging.root.setLevel(level)
        return Path(output).read_bytes()


def _normalised(embedder: Embedder, paths: Sequence[str]) -> Iterator[Tensor]:
    """Batches of images as the network gets them; raises a UserError for one that cannot be read."""
    resize = ResizedPlanes.of_mode(embedder.size, embedder.resize, embedder.mean, embedder.draft_decoding)
    batches = (paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH))
    for batch in read_batches(batches, resize, embedder.num_workers, False, embedder.exif_orientation):
        if batch.errors:
            raise batch.errors[min(batch.errors)]
        yield normalise(batch.pixels, embedder._mean, embedder._std)


def _write(content: bytes, facts: dict[str, Any], path: Path) -> None:
    onnx = require("onnx", "export", "--int8")
    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts)})
    path.write_bytes(model.SerializeToString())
