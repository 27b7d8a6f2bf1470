"""Builds the wheel, one package with all modules below it (see scripts/one_package.py), and installs it."""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from centroids_reid.commands import PROGRAMS, attribute
from scripts.one_package import BuildPackage, InstallEditable, package_folders


def requirements(name: str) -> list[str]:
    """The requirement lines of a file beside this one."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# Embedding, search and evaluation need no trackers; opencv is for programs of the original.
CLONE = requirements("requirements.txt")
TRAIN = [line for line in CLONE if line.startswith(("mlflow", "tensorboard"))]
BASE = [line for line in CLONE if line not in TRAIN and not line.startswith("opencv")]
# Indexes for large galleries and an embedded vector store; the exchange format of networks, its exporter and runtime.
FAISS = ["faiss-cpu>=1.8"]
MILVUS = ["milvus-lite>=3.2.2", "pymilvus>=2.6.17"]
EXPORT = ["onnx>=1.16", "onnxruntime>=1.17", "onnxscript>=0.1"]
# Another runtime, which reads that format too.
OPENVINO = ["openvino>=2024.6", "onnx>=1.16", "onnxscript>=0.1"]
# Tables of data sets; mlflow brings it along, its slim variants do not.
PARQUET = ["pyarrow>=15"]
# Weights that other code bases save in this format.
SAFETENSORS = ["safetensors>=0.4"]
# Further losses for LOSSES.EXTRA.
LOSSES = ["pytorch-metric-learning>=2.0"]
# Images behind URLs; a store needs its own package as well, such as s3fs.
REMOTE = ["fsspec>=2023.6"]
# Networks of timm; earlier versions interpolate positions as if every grid were square, and recompute by reentry.
BACKBONES = ["timm>=1.0.13"]
OTHERS = FAISS + EXPORT + OPENVINO + PARQUET + SAFETENSORS + LOSSES + BACKBONES + REMOTE
DEV = CLONE + requirements("requirements-dev.txt") + OTHERS

setup(
    name="centroids-reid",
    version="2.0.0",
    description="Centroid triplet loss for person re-identification and image retrieval",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=list(package_folders()),
    package_dir=package_folders(),
    package_data={
        "centroids_reid": ["py.typed"],
        "centroids_reid.configs": ["*.yml"],
        "centroids_reid.evaluation": ["*.js"],
    },
    cmdclass={"build_py": BuildPackage, "editable_wheel": InstallEditable},
    entry_points={
        "console_scripts": [f"{name} = centroids_reid.commands:{attribute(name)}" for name in PROGRAMS],
    },
    install_requires=BASE,
    extras_require={
        "train": TRAIN,
        "search": FAISS + MILVUS,
        "export": EXPORT,
        "openvino": OPENVINO,
        "parquet": PARQUET,
        "safetensors": SAFETENSORS,
        "losses": LOSSES,
        "backbones": BACKBONES,
        "remote": REMOTE,
        "all": TRAIN + MILVUS + OTHERS,
        "dev": DEV + MILVUS,
        "dev-without-milvus": DEV,  # see requirements-floor.txt
    },
)
