"""What the tests share: where the recorded numbers lie, the one table of tolerances, and small drawn inputs."""

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

# One table of tolerances: name -> relative and absolute difference allowed.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"rtol": 1e-5, "atol": 1e-6},  # recorded on another torch version, float32 arithmetic
    "weights": {"rtol": 0.0, "atol": 1e-5},  # final weights of a whole recorded fit
    "device": {"rtol": 1e-4, "atol": 1e-5},  # float32 on an accelerator, whose sums have another order
    "device weights": {"rtol": 0.0, "atol": 1e-4},  # final weights of a whole fit there
    "grey": {"rtol": 0.0, "atol": 0.0176},  # one grey level after normalisation: Pillow's rounding moved
    "pictures": {"rtol": 0.0, "atol": 2e-4},  # metrics from pictures: such a grey level swaps two ranks here or there
}


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=True) as archive:
        return dict(archive)


def unpack(name: str, folder: Path) -> Path:
    """Unpack tests/golden/NAME.tar.xz into a folder, and return that."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def assert_close(actual: Any, expected: Any, tolerance: str = "float32") -> None:
    """assert_allclose by an entry of the table; tensors and arrays alike."""
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().cpu().numpy()
    allowed = TOLERANCES[tolerance]
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=allowed["rtol"], atol=allowed["atol"])


def fill_by_recipe(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights drawn from the key's own checksum, as the recordings were made (see tests/golden/README.md)."""
    filled = {}
    for key, value in state_dict.items():
        shape = tuple(value.shape)
        if not value.is_floating_point():
            filled[key] = torch.zeros_like(value)
            continue
        r = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
        if value.dim() == 4:
            array = r.randn(*shape) * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        elif key.endswith("fc_query.weight"):
            array = r.randn(*shape) * 0.01
        elif "centers" in key:
            array = r.randn(*shape)
        elif value.dim() == 2:
            array = r.randn(*shape) * 0.01
        elif key.endswith("running_var"):
            array = 1 + 0.2 * r.rand(*shape)
        elif key.endswith("running_mean"):
            array = 0.05 * r.randn(*shape)
        elif key.endswith("weight"):
            array = 1 + 0.1 * r.randn(*shape)
        else:
            array = 0.05 * r.randn(*shape)
        filled[key] = torch.from_numpy(np.asarray(array, dtype=np.float32))
    return filled


# For each value of EXIF's orientation: stored pixels [H, W, ...] -> those that are shown.
UPRIGHT: dict[int, Any] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@contextmanager
def counting_saved_numbers() -> Iterator[list[int]]:
    """How many numbers each tensor has that operations in this context keep for the backward pass."""
    saved: list[int] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield saved


def stored_pixels(height: int = 24, width: int = 16) -> np.ndarray:
    """Smooth colours that differ in every corner, [height, width, 3]: no turned or mirrored copy is equal."""
    corners = np.array([[[250, 20, 20], [20, 240, 30]], [[30, 20, 230], [230, 230, 40]]], dtype=np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def save_turned(path: Path, orientation: int | bytes, pixels: np.ndarray | None = None) -> Path:
    """Save stored pixels with an orientation in their EXIF data, or with any bytes as that data; returns the path."""
    exif: Any = orientation
    if isinstance(orientation, int):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "a maker of cameras"
    path.parent.mkdir(parents=True, exist_ok=True)
    by_suffix: dict[str, dict[str, Any]] = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}
    options = by_suffix.get(path.suffix, {})
    Image.fromarray(stored_pixels() if pixels is None else pixels).save(path, exif=exif, **options)
    return path
