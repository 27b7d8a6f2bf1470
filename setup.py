"""Installs the packages and the two training modules, so that programs anywhere can import them."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The requirement lines of a file beside this one."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# Indexes for large galleries and an embedded vector store; the exchange format of networks, its exporter and runtime.
FAISS = ["faiss-cpu>=1.8"]
MILVUS = ["milvus-lite>=3.2.2", "pymilvus>=2.6.17"]
EXPORT = ["onnx>=1.16", "onnxruntime>=1.17", "onnxscript>=0.1"]
# Tables of data sets; mlflow brings it along, its slim variants do not.
PARQUET = ["pyarrow>=15"]
# Weights that other code bases save in this format.
SAFETENSORS = ["safetensors>=0.4"]
DEV = requirements("requirements-dev.txt") + FAISS + EXPORT + PARQUET + SAFETENSORS

setup(
    name="centroids-reid",
    version="2.0.0",
    description="Centroid triplet loss for person re-identification and image retrieval",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(exclude=("tests", "tests.*", "benchmarks", "benchmarks.*")),
    py_modules=["train_ctl_model", "train_base_model"],
    install_requires=requirements("requirements.txt"),
    extras_require={
        "search": FAISS + MILVUS,
        "export": EXPORT,
        "parquet": PARQUET,
        "safetensors": SAFETENSORS,
        "dev": DEV + MILVUS,
        "dev-without-milvus": DEV,  # see requirements-floor.txt
    },
)
