"""The tables of the pages are those of the committed reports, and show what a report says."""

import json
import re
from fnmatch import fnmatch
from functools import reduce
from operator import getitem
from typing import Any

import pytest

from benchmarks import common, tables
from benchmarks.common import spread

MACHINE = {
    "python": "3.11.7", "torch": "2.9.0", "torchmetrics": "1.9.0", "faiss-cpu": None, "cpu": "a CPU", "cores": 4,
    "threads": 2, "load_average": [0.25, 0.5, 1.0], "system": "Linux",
}  # fmt: skip
HEAD: dict[str, Any] = {
    "command": "python benchmarks/bench_x.py --repeats 3", "date": "2030-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef0123456789abcdef01234567", "machine": MACHINE,
}  # fmt: skip
S = spread([1.0, 2.0, 4.0])  # "2 (1 to 4)"
R = spread([0.04, 0.05, 0.09]) | {"mean": 0.06, "sd": 0.02646, "interval": [-0.0057, 0.1257], "above_zero": 3}
GROWTH = [{"pairs": 1000 * 4**i, "engine_s": S, "ns_per_pair": 40.0 + i} for i in range(3)]
SPEEDS = {"images_per_s": S, "times_reference": S}
AGREES = {"mAP": 0.5, "mAP_difference": 1e-12, "largest_cmc_difference": 0.0}

# A small report for each file.
REPORTS: dict[str, dict[str, Any]] = {
    "startup": {
        "first_batch": {
            name: {"seconds": S, "times_bare": S} for name in ("bare", "this_project", "this_project_with_mlflow")
        },
        "imports": {name: {"seconds": S, "times_bare": S, "modules": 3456} for name in ("bare", "this_project")},
        "costs": [{"module": "cv2", "own_ms": S, "with_its_imports_ms": S}],
    },
    "training_resnet50": {
        "heads": [{"images": 64, "ms": S}],
        "step": {
            **{f"{name}_s": S for name in ("plain", "step", "forward", "backward", "heads_forward", "optimiser")},
            **{f"{name}_s": S for name in ("logging", "data_wait", "trainer", "backbone")},
            "times_faster_than_plain": S,
            "step_over_backbone": S,
        },
        "memory": {
            name: {"peak_mib": 1234.5} for name in ("plain", "this_project", "contiguous", "grad_checkpoint")
        },
    },
    "decoding": {
        "crops": {"files": [128, 64], "ours": {"images_per_s": S, "times_ours": S}},
        "originals": {
            "files": [1024, 512],
            **{
                name: {"images_per_s": S, "times_ours": S, "grey_levels": {"mean": 0.5, "p99": 2.0, "max": 5.0}}
                for name in ("ours", "ours_draft", "simplejpeg", "simplejpeg_draft", "torchvision")
            },
        }
    },
    "frame": {"crops": 30, "resnet18": {name: {"ms_per_frame": S} for name in ("32-true", "bf16-true")}},
    "data": {
        "photos": {
            name: {
                "files": [1024, 512], "input": [256, 128], "images": 4, "plain": {"images_per_s": S},
                **{
                    way: {"images_per_s": S, "times_plain": S}
                    for way in ("uncached", "ram_cold", "ram_warm", "disk_cold", "disk_warm")
                },
            }
            for name in ("train", "test")
        }
    },
    "evaluation_market": {
        "size": {"queries": 3368, "gallery": 15913, "dimensions": 2048},
        "engine": {"product_s": S, "engine_s": S, "engine_over_product": S},
        "protocols": {
            f"{protocol}_{metric}_s": S
            for protocol in ("instance", "centroid", "centroid_strict")
            for metric in ("euclidean", "cosine")
        },
        "classic": {
            "given_distances": {"classic_s": S, "engine_s": S, "times_faster": S},
            "from_embeddings": {"classic_s": S, "engine_s": S, "times_faster": S},
            "same_numbers": {"given_distances": AGREES, "from_embeddings": AGREES},
        },
        "memory": {
            name: {"peak_beyond_inputs_mib": 63.4} for name in ("instance", "centroid", "centroid_strict", "rerank")
        },
        "growth": GROWTH,
        "rerank": {"whole_s": S, "rerank_over_product": S},
        "rivals": {
            "this_project": {"seconds": S, "mAP": 0.1234567, "Top-1": 0.5, "cannot": []},
            "torchmetrics": {"seconds": S, "mAP": 0.1234567, "Top-1": 0.5, "cannot": ["mINP", "centroid protocols"]},
            "pytorch_metric_learning": {"skipped": "not installed"},
        },
    },
    "evaluation_msmt": {
        "size": {"queries": 11659, "gallery": 82161, "dimensions": 2048},
        "engine": {"product_s": S, "engine_s": S, "engine_over_product": S},
        "classic": {"skipped": "957915099 pairs would need 14 GiB and more"},
    },
    "embedding_engines": {
        "engines": [
            {
                "network": "resnet50",
                "int8_cosine": {"mean": 0.99, "least": 0.98},
                "mAP": {"float32 torch": 0.9, "int8 onnxruntime": 0.875},
                "cells": [
                    {
                        "batch": 8,
                        "rows": {
                            "float32 torch": {"images_per_s": S},
                            "int8 onnxruntime": {"images_per_s": S, "times_torch": S},
                        },
                    }
                ],
            }
        ]
    },
    "embedding_resnet50": {
        "forward": {
            "plain_images_per_s": S,
            **{
                name: {"images_per_s": S, "times_plain": S, "least_cosine_to_plain": 0.99997}
                for name in ("32-true", "bf16-true")
            },
        },
        "pipeline": [
            {
                "precision": "32-true", "forward_images_per_s": S, "decode_ms_per_image": S,
                "decode_by_transforms_ms_per_image": S, **{f"{n}_threads_share_of_forward": S for n in (0, 1, 2)},
            }
        ],
        "memory": [
            {
                "files": 1000000, "dimension": 512, "libraries_mib": 600.5, "peak_beyond_mib": 12.3,
                "embeddings_mib": 1953.1, "seconds_without_model": 45.6,
            }
        ],
    },
    "sources": {
        "parts": [
            {
                "images": 1000000, "shards_over_files": S,
                **{way: {"images_per_s": S, "before_mib": S, "peak_mib": S} for way in ("shards", "files")},
            }
        ],
    },
    "search_1000000": {
        "queries": 1000, "gallery": 1000000, "dims": 512,
        "product": {"seconds": spread([1.0, 1.0, 1.0]), "peak_beyond_mib": 80.0},
        "exact": {"seconds": S, "peak_beyond_mib": 90.4, "pairs_times_4_bytes_mib": 3814.7},
        "faiss:ivf": {"load_and_search_s": S, "first_s": 30.0, "peak_beyond_mib": 2000.0, "recall": 0.987},
    },
    "search_10000000": {
        "dims": 512, "queries": 100, "topk": 10,
        "exact": {"rows": 10000000, "query_s": 18.5, "query_mib": 400.5, "recall": 1.0},
        **{
            kind: {
                "rows": 1000000, "build_s": 300.5, "build_mib": 2000.5, "mib": 686.5, "query_s": 1.5,
                "query_mib": 900.5, "recall": 0.987, "libraries_mib": 300.5,
            }
            for kind in ("ivfpq", "ivf", "milvus")
        },
    },
    "backbones": {
        "networks": [
            {
                "network": "resnet50", "weights": "torchvision, timm",
                "counts": {"parameters": 23512128, "multiply_adds": 4053581824, "embedding_size": 2048},
                "onnx": {"relative_error": 3e-6, "cosine": 1.0},
                "embedding": {name: {"images_per_s": S, "times_reference": 1} for name in ("32-true", "bf16-true")},
                "training": {name: {"images_per_s": S, "times_reference": 1} for name in ("32-true", "bf16-mixed")},
            },
            {
                "network": "timm:vit_base_patch16_224 MODEL.PATCH_STRIDE 12 MODEL.DROP_PATH 0.1", "weights": None,
                "counts": {"parameters": 85_000_000, "multiply_adds": 18e9, "embedding_size": 768},
                "embedding": dict.fromkeys(("32-true", "bf16-true"), SPEEDS),
                "failed": {"onnx": "UserError: not written", "training": "RuntimeError: no memory"},
            },
        ]
    },
    "coco": {
        "reader": {"10000": {"cpu_seconds": S, "microseconds_each": 9.1, "each_over_smallest": S}},
    },
    "scaling": {
        "1_processes": {"training_images_per_s": S, "evaluation_images_per_s": S},
        "2_processes": {
            "training_images_per_s": S, "evaluation_images_per_s": S, "training_efficiency": 0.876,
            "evaluation_efficiency": 0.98,
        },
    },
    "scaling_embedding": {
        "1_processes": {"embedding_images_per_s": S},
        "2_processes": {"embedding_images_per_s": S, "embedding_efficiency": 0.9},
    },
    "real": {
        "means": {
            "none/random": dict.fromkeys(("mAP", "rank1", "centroid_mAP", "centroid_rank1"), R),
            "ctl/pretrained": {
                name: R | {"mean": 0.5, "sd": None, "values": [0.5]}
                for name in ("mAP", "rank1", "centroid_mAP", "centroid_rank1")
            },
        },
        "ctl_minus_baseline": {
            "random": dict.fromkeys(("mAP", "rank1", "centroid_mAP", "centroid_rank1"), R),
            "pretrained": dict.fromkeys(
                ("mAP", "rank1", "centroid_mAP", "centroid_rank1"), R | {"mean": -0.0123, "interval": None}
            ),
        },
    },
    tables.CARDS: {
        "card": "A Card",
        "training": {
            "64, 32-true": {
                "step_ms": 110.0, "plain_ms": 120.0, "backbone_ms": 100.0, "kernels_ms": 90.0, "images_per_s": 581.8,
                "step_over_backbone": 1.1, "peak_mib": 4096.5,
            },
            "256, 16-mixed, compiled": {"failed": "CUDA out of memory."},
        },
        "loading": {"jpeg": {"workers": 16, "images_per_s": 9000.0}},
        "embedding": {
            "resnet50": {
                "bf16-true": {"forward_images_per_s": 5000.0, "from_files_images_per_s": 4000.0, "peak_mib": 512.5}
            }
        },
        "evaluation": {
            "msmt": {
                "evaluation_s": 0.5, "evaluation_over_product": 1.25, "peak_mib": 1024.5, "reranking_s": 2.5,
                "reranking_over_product_of_all": 3.5,
            }
        },
    },
    "soak": {
        "epochs": 200,
        "memory_mib": {"first": spread([1190, 1192, 1200]), "last": spread([1200]), "largest": 1237.4},
        "open_files": {"first": spread([20, 20]), "last": spread([20]), "largest": 20},
        "checkpoints_left": {"checkpoints": 1, "auto_checkpoints": 1},
    },
}  # fmt: skip
REPORTS["backbones_speed"] = REPORTS["backbones"]
REPORTS["embedding_int8"] = REPORTS["embedding_int8_real"] = REPORTS["embedding_engines"]

# The first row of each table and the last, as they stand on the page.
EXPECTED = {
    "engines": (
        "| `resnet50` | 8 | float32 | torch | 2 (1 to 4) | – |",
        "| `resnet50` | 8 | int8 | onnxruntime | 2 (1 to 4) | 2 (1 to 4) |",
    ),
    "engines_int8": ("| `resnet50` | onnxruntime | 0.9900 | 0.9800 | 0.9000 | 0.8750 |",) * 2,
    "engines_int8_real": ("| `resnet50` | onnxruntime | 0.9900 | 0.9800 | 0.9000 | 0.8750 |",) * 2,
    "startup": (
        "| bare script | 2 s (1 to 4) | 2 (1 to 4) |",
        "| `train_ctl_model.py` with MLflow, as by default | 2 s (1 to 4) | 2 (1 to 4) |",
    ),
    "startup_imports": (
        "| `import torch, torchvision, pytorch_lightning` | 2 s (1 to 4) | 2 (1 to 4) | 3,456 |",
        "| `import train_ctl_model` | 2 s (1 to 4) | 2 (1 to 4) | 3,456 |",
    ),
    "startup_costs": ("| `cv2` | 2 ms (1 to 4) | 2 ms (1 to 4) |",) * 2,
    "training_step": (
        "| plain PyTorch loop, a whole step | 2 s (1 to 4) |",
        "| this project / backbone alone | 2 (1 to 4) |",
    ),
    "training_heads": ("| 64 | 2 ms (1 to 4) |",) * 2,
    "training_memory": ("| plain PyTorch loop | 1,234 MiB |", "| `MODEL.GRAD_CHECKPOINT True` | 1,234 MiB |"),
    "data_train": ("| 1024 x 512, 256 x 128 |" + " 2 (1 to 4) |" * 6,) * 2,
    "data_test": ("| 1024 x 512, 256 x 128 |" + " 2 (1 to 4) |" * 6,) * 2,
    "decoding": (
        "| 128 x 64 | 2 (1 to 4) |" + " – |" * 6 + " – / – |",
        "| 1024 x 512 |" + " 2 (1 to 4) |" * 4 + " – |" * 2 + " 2 (1 to 4) | 0.5 / 2 |",
    ),
    "frame": ("| `resnet18` | 2 ms (1 to 4) | 2 ms (1 to 4) |",) * 2,
    "evaluation_market": (
        "| product of the two matrices alone | 2 s (1 to 4) |",
        "| ... as a multiple of this project's time | 2 (1 to 4) |",
    ),
    "evaluation_msmt": (
        "| product of the two matrices alone | 2 s (1 to 4) |",
        "| classic evaluator | not measured: 957915099 pairs would need 14 GiB and more |",
    ),
    "evaluation_growth": ("| 1,000 | 2 s (1 to 4) | 40 |", "| 16,000 | 2 s (1 to 4) | 42 |"),
    "evaluation_rivals": (
        "| this project | 2 s (1 to 4) | 0.123457 | – |",
        "| pytorch-metric-learning | – | – | not installed |",
    ),
    "embedding_forward": (
        "| plain model in eval mode, float32 | 2 (1 to 4) | 1 | – |",
        "| Embedder, bfloat16 | 2 (1 to 4) | 2 (1 to 4) | 0.999970 |",
    ),
    "embedding_pipeline": ("| 32-true |" + " 2 (1 to 4) |" * 6,) * 2,
    "embedding_memory": ("| 1,000,000 x 512 | 1,953 | 12.3 | 600 | 45.6 |",) * 2,
    "sources": ("| 1,000,000 |" + " 2 (1 to 4) |" * 5,) * 2,
    "search": (
        "| matrix product alone, in memory | 1 (1 to 1) | – | – | – |",
        "| `faiss:ivf` | 2 (1 to 4) | 30 s | 2,000 MiB | 0.987 |",
    ),
    "search_large": (
        "| exact | 10,000,000 | – | – | – | 18.5 | 400 MiB | 1 |",
        "| embedded Milvus | 1,000,000 | 300 s | 2,000 MiB | 686 MiB | 1.5 | 900 MiB | 0.987 |",
    ),
    "backbones": (
        "| `resnet50` | 2,048 | 23.5 | 4.05 | 3.0e-06 | torchvision, timm |",
        "| `timm:vit_base_patch16_224`, `MODEL.PATCH_STRIDE 12`, `MODEL.DROP_PATH 0.1` | 768 | 85 | 18 | failed | – |",
    ),
    "backbones_training": (
        "| `resnet50` | 2 (1 to 4) | 1 | 2 (1 to 4) | 1 |",
        "| `timm:vit_base_patch16_224`, `MODEL.PATCH_STRIDE 12`, `MODEL.DROP_PATH 0.1` |" + " failed |" * 4,
    ),
    "backbones_embedding": (
        "| `resnet50` | 2 (1 to 4) | 1 | 2 (1 to 4) | 1 |",
        "| `timm:vit_base_patch16_224`, `MODEL.PATCH_STRIDE 12`, `MODEL.DROP_PATH 0.1` |" + " 2 (1 to 4) |" * 4,
    ),
    "coco": ("| read such a file for training | 10,000 | 2 s (1 to 4) | 9.1 | 2 (1 to 4) |",) * 2,
    "scaling": ("| 1 | 2 (1 to 4) | 1 | 2 (1 to 4) | 1 |", "| 2 | 2 (1 to 4) | 0.876 | 2 (1 to 4) | 0.98 |"),
    "real": (
        "| random weights, untrained | 3 |" + " 6.0 ± 2.6 (4.0 to 9.0) |" * 4,
        "| CTL, from given weights | 1 |" + " 50.0 |" * 4,
    ),
    "real_pairs": (
        "| from random weights, mAP | +6.0 | -0.6 to +12.6 | 3 of 3 |",
        "| from given weights, centroids, Rank-1 | -1.2 | – | 3 of 3 |",
    ),
    "scaling_embedding": ("| 1 | 2 (1 to 4) | 1 |", "| 2 | 2 (1 to 4) | 0.9 |"),
    # A core: 1 / (2 threads / 2 images/s + 1 / 2 images/s); 1e8 images of 2048 numbers.
    "cost": ("| `resnet50` | 0.667 | 723 | 72.3 | 819 | 410 |",) * 2,
    "search_cost": (
        "| exact | – | – | 3.08 | 0.391 |",  # ten times the rows
        "| `faiss:ivf`, lists on disk | 41.7 | 67 | 0.5 | 12 |",  # 100 times the rows, 10,000 lists instead of 2,000
    ),
    "gpu_training": (
        "| A Card | 64, 32-true | 110 ms | 120 ms | 100 ms | 90 ms | 582 | 1.1 | 4,096 MiB |",
        "| A Card | 256, 16-mixed, compiled |" + " failed |" * 7,
    ),
    "gpu_other": (
        "| A Card | loading, 16 workers | 9,000 images/s | – | – |",
        "| A Card | re-ranking, msmt | 2.5 s | 3.5 | – |",
    ),
    "soak": (
        "| resident memory | 1,192 MiB (1,190 to 1,200) | 1,200 MiB (1,200 to 1,200) | 1,237 MiB |",
        "| ... to resume from | – | 1 | – |",
    ),
}
# Head and places in the report of all rows, where many values stand side by side; None is no value of the report.
PLACES: dict[str, list[tuple[str | None, ...]]] = {
    "startup": [
        (head, f"first_batch/{name}/seconds", f"first_batch/{name}/times_bare")
        for head, name in (
            ("bare script", "bare"),
            ("`train_ctl_model.py`, `LOGGING.MLFLOW False`", "this_project"),
            ("`train_ctl_model.py` with MLflow, as by default", "this_project_with_mlflow"),
        )
    ],
    "training_step": [
        ("plain PyTorch loop, a whole step", "step/plain_s"),
        ("this project, a whole step", "step/step_s"),
        ("... backbone, forward", "step/forward_s"),
        ("... backward pass", "step/backward_s"),
        ("... losses, forward", "step/heads_forward_s"),
        ("... both optimisers", "step/optimiser_s"),
        ("... logging", "step/logging_s"),
        ("... waiting for data that is in memory", "step/data_wait_s"),
        ("... the rest of the Trainer", "step/trainer_s"),
        ("the backbone alone, forward and backward", "step/backbone_s"),
        ("plain loop / this project", "step/times_faster_than_plain"),
        ("this project / backbone alone", "step/step_over_backbone"),
    ],
    "search_large": [
        ("exact", "exact/rows", None, None, None, "exact/query_s", "exact/query_mib", "exact/recall"),
        *(
            (
                head, f"{kind}/rows", f"{kind}/build_s", f"{kind}/build_mib", f"{kind}/mib", f"{kind}/query_s",
                f"{kind}/query_mib", f"{kind}/recall",
            )
            for head, kind in (
                ("`faiss:ivfpq`", "ivfpq"), ("`faiss:ivf`, lists on disk", "ivf"), ("embedded Milvus", "milvus"),
            )
        ),
    ],
    "training_memory": [
        ("plain PyTorch loop", "memory/plain/peak_mib"),
        ("this project", "memory/this_project/peak_mib"),
        ("`MODEL.CHANNELS_LAST False`", "memory/contiguous/peak_mib"),
        ("`MODEL.GRAD_CHECKPOINT True`", "memory/grad_checkpoint/peak_mib"),
    ],
    **{
        f"data_{name}": [
            (
                "1024 x 512, 256 x 128", f"photos/{name}/plain/images_per_s", f"photos/{name}/uncached/times_plain",
                f"photos/{name}/ram_cold/times_plain", f"photos/{name}/ram_warm/times_plain",
                f"photos/{name}/disk_cold/times_plain", f"photos/{name}/disk_warm/times_plain",
            )
        ]
        for name in ("train", "test")
    },
    "evaluation_market": [
        ("product of the two matrices alone", "engine/product_s"),
        ("whole evaluation, single images", "engine/engine_s"),
        ("... as a multiple of the product", "engine/engine_over_product"),
        ("... for a pair of a query and a gallery image", "growth/2/ns_per_pair"),
        ("single images, euclidean", "protocols/instance_euclidean_s"),
        ("centroids, published protocol, euclidean", "protocols/centroid_euclidean_s"),
        ("centroids, strict protocol, euclidean", "protocols/centroid_strict_euclidean_s"),
        ("single images, cosine", "protocols/instance_cosine_s"),
        ("centroids, published protocol, cosine", "protocols/centroid_cosine_s"),
        ("centroids, strict protocol, cosine", "protocols/centroid_strict_cosine_s"),
        ("single images, memory", "memory/instance/peak_beyond_inputs_mib"),
        ("centroids, published protocol, memory", "memory/centroid/peak_beyond_inputs_mib"),
        ("centroids, strict protocol, memory", "memory/centroid_strict/peak_beyond_inputs_mib"),
        ("k-reciprocal re-ranking and evaluation", "rerank/whole_s"),
        ("... as a multiple of the product of all images with themselves", "rerank/rerank_over_product"),
        ("... memory", "memory/rerank/peak_beyond_inputs_mib"),
        ("... in that run", "memory/rerank/seconds_first_run"),
        ("classic evaluator, from the embeddings", "classic/from_embeddings/classic_s"),
        ("... as a multiple of this project's time", "classic/from_embeddings/times_faster"),
        ("... difference in mAP", "classic/same_numbers/from_embeddings/mAP_difference"),
        ("classic evaluator, distances given", "classic/given_distances/classic_s"),
        ("... as a multiple of this project's time", "classic/given_distances/times_faster"),
    ],
    "embedding_pipeline": [
        (
            "32-true", "pipeline/0/forward_images_per_s",
            *(f"pipeline/0/{threads}_threads_share_of_forward" for threads in (0, 1, 2)),
            "pipeline/0/decode_ms_per_image", "pipeline/0/decode_by_transforms_ms_per_image",
        )
    ],
    "sources": [
        (
            "1,000,000", "parts/0/shards/images_per_s", "parts/0/files/images_per_s", "parts/0/shards_over_files",
            "parts/0/shards/peak_mib", "parts/0/files/peak_mib",
        )
    ],
    "backbones": [
        (
            "`resnet50`", "networks/0/counts/embedding_size", "networks/0/counts/parameters",
            "networks/0/counts/multiply_adds", "networks/0/onnx/relative_error", None,
        ),
        (
            "`timm:vit_base_patch16_224`, `MODEL.PATCH_STRIDE 12`, `MODEL.DROP_PATH 0.1`",
            "networks/1/counts/embedding_size", "networks/1/counts/parameters", "networks/1/counts/multiply_adds",
            None, None,
        ),
    ],
    "backbones_training": [
        (
            "`resnet50`", "networks/0/training/32-true/images_per_s", "networks/0/training/32-true/times_reference",
            "networks/0/training/bf16-mixed/images_per_s", "networks/0/training/bf16-mixed/times_reference",
        ),
        ("`timm:vit_base_patch16_224`, `MODEL.PATCH_STRIDE 12`, `MODEL.DROP_PATH 0.1`", None, None, None, None),
    ],
    "backbones_embedding": [
        (
            head, *(
                f"networks/{i}/embedding/{precision}/{name}" for precision in ("32-true", "bf16-true")
                for name in ("images_per_s", "times_reference")
            ),
        )
        for i, head in enumerate(
            ("`resnet50`", "`timm:vit_base_patch16_224`, `MODEL.PATCH_STRIDE 12`, `MODEL.DROP_PATH 0.1`")
        )
    ],
    "gpu_training": [
        (
            "A Card", None, *(f"training/64, 32-true/{part}_ms" for part in ("step", "plain", "backbone", "kernels")),
            *(f"training/64, 32-true/{part}" for part in ("images_per_s", "step_over_backbone", "peak_mib")),
        ),
        ("A Card", *[None] * 8),
    ],
    "gpu_other": [
        ("A Card", None, "loading/jpeg/images_per_s", None, None),
        (
            "A Card", None, "embedding/resnet50/bf16-true/forward_images_per_s", None,
            "embedding/resnet50/bf16-true/peak_mib",
        ),
        ("A Card", None, "embedding/resnet50/bf16-true/from_files_images_per_s", None, None),
        (
            "A Card", None, "evaluation/msmt/evaluation_s", "evaluation/msmt/evaluation_over_product",
            "evaluation/msmt/peak_mib",
        ),
        ("A Card", None, "evaluation/msmt/reranking_s", "evaluation/msmt/reranking_over_product_of_all", None),
    ],
    "scaling": [
        ("1", "1_processes/training_images_per_s", None, "1_processes/evaluation_images_per_s", None),
        (
            "2", "2_processes/training_images_per_s", "2_processes/training_efficiency",
            "2_processes/evaluation_images_per_s", "2_processes/evaluation_efficiency",
        ),
    ],
}  # fmt: skip
MADE_UP = {name: HEAD | report for name, report in REPORTS.items()}


def body(name, reports):
    """The rows of a table below its head."""
    lines = tables.render(name, reports).splitlines()
    assert len({line.count("|") for line in lines}) == 1, "as many cells in each row as there are columns"
    assert set(lines[1]) == set("| -")
    return lines[2:]


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_a_page_is_what_the_committed_reports_say(path):
    page = path.read_text(encoding="utf-8")
    expected = tables.replaced(page, tables.read_reports(tables.RESULTS))
    assert page == expected, "run: python -m benchmarks.tables"


def test_the_pages_have_one_place_for_every_table():
    pages = [path.read_text(encoding="utf-8") for path in tables.PAGES]
    names = [found[2] for page in pages for found in tables.MARKED.finditer(page)]
    assert sorted(names) == sorted([*tables.TABLES, "origin"])
    assert set(tables.REPORTS) == set(REPORTS)


def test_every_committed_report_is_on_the_page():
    names = {file.stem for file in tables.RESULTS.glob("*.json")}
    assert {name for name in names if not fnmatch(name, tables.CARDS)} == set(REPORTS) - {tables.CARDS}


def test_each_card_has_its_own_rows():
    cards = {f"gpu_{name}": MADE_UP[tables.CARDS] | {"card": name} for name in ("a", "b")}
    assert [row[:5] for row in body("gpu_training", cards)] == ["| a |", "| a |", "| b |", "| b |"]


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_prose_holds_no_measured_value(path):
    """Seconds, MiB and speeds stand in tables; the settings of a benchmark may be told."""
    prose = tables.MARKED.sub("", path.read_text(encoding="utf-8"))
    prose = prose.replace('"2.0 s (1.9 to 2.3)"', "")  # how to read a cell
    assert not re.findall(r"\d[\d.,]* ?(?:s|ms|seconds|MiB|GiB|images/s|%|times)\b", prose)


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_a_table_shows_its_report(name):
    rows = body(name, MADE_UP)
    assert (rows[0], rows[-1]) == EXPECTED[name]


@pytest.mark.parametrize("name", ["origin", *tables.TABLES])
def test_without_a_report_nothing_was_measured(name):
    assert tables.render(name, {}) == "Not measured yet.\n"


def test_a_part_that_is_missing_gives_dashes():
    rows = body("evaluation_market", {"evaluation_market": HEAD | {"size": REPORTS["evaluation_market"]["size"]}})
    assert all(row.endswith("| – |") for row in rows)
    assert tables.render("training_heads", {"training_resnet50": HEAD}) == "Not measured yet.\n"


@pytest.mark.parametrize("name", list(PLACES))
def test_each_value_comes_from_its_own_place(name):
    """Another value in one place of the report changes one cell of the table, and no other."""
    source = tables.TABLES[name].report
    before = [row.strip("| ").split(" | ") for row in body(name, MADE_UP)]
    assert [cells[0] for cells in before] == [head for head, *_ in PLACES[name]]
    for row, (_, *places) in enumerate(PLACES[name]):
        assert len(before[row]) == 1 + len(places)
        for column, place in enumerate(places, 1):
            if place is None:
                continue
            report = json.loads(json.dumps(MADE_UP[source]))
            *way, last = (int(part) if part.isdigit() else part for part in place.split("/"))
            reduce(getitem, way, report)[last] = 987.0
            after = [line.strip("| ").split(" | ") for line in body(name, {source: report})]
            changed = [(i, j) for i, cells in enumerate(before) for j, text in enumerate(cells) if after[i][j] != text]
            assert changed == [(row, column)], place


def test_search_compares_medians_with_the_product():
    assert "| ... medians, as a multiple of the product | 2 | – | – | – |" in body("search", MADE_UP)


def test_seconds_of_a_step_are_shown_in_milliseconds():
    assert "| ... losses, forward | 2,000 ms (1,000 to 4,000) |" in body("training_step", MADE_UP)


def test_rivals_are_named_with_their_version():
    assert "| torchmetrics 1.9.0 | 2 s (1 to 4) | 0.123457 | mINP, centroid protocols |" in body(
        "evaluation_rivals", MADE_UP
    )


def test_origin_names_command_commit_and_machine():
    reports = {"coco": MADE_UP["coco"], "soak": MADE_UP["soak"] | {"commit": f"{HEAD['commit']} with changes"}}
    rows = body("origin", reports)
    assert rows[0] == (
        "| coco | `python benchmarks/bench_x.py --repeats 3` | 2030-01-02 | 0123456789 | a CPU, 4 cores, 2 threads, "
        "Linux | 0.25 | python 3.11.7, torch 2.9.0, torchmetrics 1.9.0, faiss-cpu not installed |"
    )
    assert "| 0123456789 with changes |" in rows[1]


def test_only_what_stands_between_markers_changes():
    page = "before\n<!-- table: scaling -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    new = tables.replaced(page, MADE_UP)
    assert new.startswith("before\n<!-- table: scaling -->\n| processes |")
    assert new.endswith("|\n<!-- end -->\nafter <!-- end -->\n")
    assert "old" not in new
    assert tables.replaced(new, MADE_UP) == new


def test_unknown_table_is_refused():
    with pytest.raises(KeyError, match="nonsense"):
        tables.replaced("<!-- table: nonsense -->\n<!-- end -->\n", MADE_UP)


def test_the_command_writes_and_checks_every_page(tmp_path, monkeypatch):
    pages = {name: tmp_path / f"{name}.md" for name in ("soak", "coco")}
    for name, page in pages.items():
        page.write_text(f"<!-- table: {name} -->\n<!-- end -->\n", encoding="utf-8")
        (tmp_path / f"{name}.json").write_text(json.dumps(MADE_UP[name]), encoding="utf-8")
    monkeypatch.setattr(tables, "PAGES", tuple(pages.values()))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    statuses = []
    for arguments in (["--check"], [], ["--check"], ["spoil"], ["--check"]):
        if arguments == ["spoil"]:
            pages["coco"].write_text("<!-- table: coco -->\n<!-- end -->\n", encoding="utf-8")
            continue
        monkeypatch.setattr("sys.argv", ["tables", *arguments])
        try:
            tables.main()
        except SystemExit as ended:
            statuses.append(int(ended.code))
    assert statuses == [1, 0, 1]
    assert "| resident memory |" in pages["soak"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (20, "20"), (0.0061234, "0.00612"), (12.345, "12.3"), (999.6, "1,000"), (1e-12, "1.0e-12")],
)
def test_numbers_have_three_digits(value, text):
    assert tables.number(value) == text


def test_reports_say_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(common.ROOT / "benchmarks" / "bench_x.py"), "--out", "a file.json"])
    common.write_report({"machine": common.machine(3, "torchvision", "no-such-package")}, tmp_path / "a" / "x.json")
    report = json.loads((tmp_path / "a" / "x.json").read_text())
    assert list(report) == ["command", "date", "commit", "machine"]
    assert report["command"] == "python benchmarks/bench_x.py --out 'a file.json'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", report["date"])
    assert report["commit"] is None or re.fullmatch("[0-9a-f]{40}( with changes)?", report["commit"])
    assert report["machine"]["threads"] == 3
    assert report["machine"]["torchvision"]
    assert report["machine"]["no-such-package"] is None
    assert {"python", "torch", "cpu", "cores", "load_average"} <= set(report["machine"])
