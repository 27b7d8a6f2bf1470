"""The recipes in configs/: what each says, that its network exists, and its whole way at a tiny size."""

import logging
from functools import partial

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from config.flatten import flatten_config
from config.load import load_config
from datasets.transforms import ReidTransforms
from engine.run import run_main
from inference.embedding.embedder import Embedder
from inference.embedding.exporting import export_checkpoint
from modelling.baseline import Baseline
from tests.e2e.test_training import assert_same_state, newest
from tests.small import SMALL
from tests.support import ROOT
from train_ctl_model import CTLModel
from utils.image import image_loader

# CTL's own files; every other one is a recipe.
OURS = {"256_resnet50.yml", "320_resnet50_ibn_a.yml", "toy_resnet18_cpu.yml"}
RECIPES = sorted({path.name for path in (ROOT / "configs").glob("*.yml")} - OURS)

TRICKS = {
    "SOLVER.OPTIMIZER_NAME": "Adam",
    "SOLVER.BASE_LR": 3.5e-4,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.LR_SCHEDULER_NAME": "multistep_lr",
    "SOLVER.LR_STEPS": (40, 70),
    "SOLVER.MAX_EPOCHS": 120,
    "SOLVER.WARMUP_EPOCHS": 10,
    "SOLVER.MARGIN": 0.3,
    "SOLVER.LABEL_SMOOTHING": 0.1,
    "INPUT.RE_PROB": 0.5,
    "MODEL.LAST_STRIDE": 1,
    "MODEL.NECK_FEAT": "after",
}
# recipe -> what its comment says that the source says
SOURCES = {
    "clip_vit_b16.yml": {
        "SOLVER.OPTIMIZER_NAME": "Adam",
        "SOLVER.BASE_LR": 5e-6,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.BIAS_LR_FACTOR": 2.0,
        "SOLVER.LR_SCHEDULER_NAME": "multistep_lr",
        "SOLVER.LR_STEPS": (30, 50),
        "SOLVER.WARMUP_EPOCHS": 10,
        "SOLVER.QUERY_XENT_WEIGHT": 0.25,
        "SOLVER.QUERY_CONTRASTIVE_WEIGHT": 1.0,
    },
    "convnext_tiny.yml": {},
    "osnet_x1_0.yml": TRICKS,
    "resnet50_bot.yml": TRICKS,
    "vit_base.yml": {
        "SOLVER.OPTIMIZER_NAME": "SGD",
        "SOLVER.MOMENTUM": 0.9,
        "SOLVER.BASE_LR": 8e-3,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.BIAS_LR_FACTOR": 2.0,
        "SOLVER.LR_SCHEDULER_NAME": "cosine_annealing",
        "SOLVER.MAX_EPOCHS": 120,
        "SOLVER.WARMUP_EPOCHS": 5,
        "SOLVER.SOFT_MARGIN": True,
        "SOLVER.LABEL_SMOOTHING": 0.0,
        "MODEL.DROP_PATH": 0.1,
        "MODEL.PATCH_STRIDE": 12,
        "MODEL.NECK_FEAT": "before",
        "INPUT.PIXEL_MEAN": [0.5] * 3,
        "INPUT.PIXEL_STD": [0.5] * 3,
        "INPUT.RE_MODE": "pixel",
    },
    "vit_small_dinov2.yml": {
        "SOLVER.OPTIMIZER_NAME": "SGD",
        "SOLVER.BASE_LR": 4e-4,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.BIAS_LR_FACTOR": 2.0,
        "SOLVER.LR_SCHEDULER_NAME": "cosine_annealing",
        "SOLVER.MAX_EPOCHS": 120,
        "SOLVER.WARMUP_EPOCHS": 20,
    },
}
# What CTL adds stays as it is.
LOSSES = {"SOLVER.CENTROID_CONTRASTIVE_WEIGHT": 1.0, "SOLVER.CENTER_LOSS_WEIGHT": 5e-4, "SOLVER.CENTER_LR": 0.5}

# recipe -> the shape that its network turns one image into
SHAPES = {
    "clip_vit_b16.yml": [1, 1 + 16 * 8, 768],
    "convnext_tiny.yml": [1, 768, 8, 4],
    "osnet_x1_0.yml": [1, 512, 16, 8],
    "resnet50_bot.yml": [1, 2048, 16, 8],
    "vit_base.yml": [1, 1 + 21 * 10, 768],
    "vit_small_dinov2.yml": [1, 1 + 18 * 9, 384],
}

# What a network is trained as: another of its family, or one of timm made small under its own name by these options.
SMALLER = {
    "resnet50": "resnet18",
    "osnet_x1_0": "osnet_x0_25",
    "timm:vit": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "timm:convnext": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}
# What SMALL has of a recipe's own stays the recipe's.
OWN = ("MODEL.NAME", "INPUT.PADDING", "SOLVER.WARMUP_EPOCHS", "SOLVER.LR_STEPS")
TINY = {key: value for key, value in SMALL.items() if key not in OWN} | {
    "MODEL.BACKBONE_EMB_SIZE": 0,
    "SOLVER.IMS_PER_BATCH": 6,
    "SOLVER.MAX_EPOCHS": 1,
}


@pytest.fixture
def tiny_recipe(tiny_folders, tmp_path, monkeypatch):
    """A recipe, by its name alone, with network and images made small and further values in place of its own."""

    def load(name, **overrides):
        network = load_config(name).MODEL.NAME
        size = [56, 28] if "patch14" in network else [64, 32]
        pairs = TINY | {"INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size} | tiny_folders | overrides
        (smaller,) = (value for key, value in SMALLER.items() if network.startswith(key))
        if isinstance(smaller, dict):
            registry, entry = timm.models._registry._model_entrypoints, network.removeprefix("timm:").partition(".")[0]
            monkeypatch.setitem(registry, entry, partial(registry[entry], **smaller))
        else:
            pairs["MODEL.NAME"] = smaller
        return load_config(name, [part for pair in pairs.items() for part in pair])

    monkeypatch.chdir(tmp_path)
    return load


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_its_source_says(name):
    values = flatten_config(load_config(ROOT / "configs" / name))
    assert (SOURCES[name] | LOSSES).items() <= values.items()
    comment = (ROOT / "configs" / name).read_text(encoding="utf-8").partition("MODEL:")[0]
    assert "\n# Source" in comment and "\n# Chosen here" in comment and "centroid loss" in comment
    assert f"`configs/{name}`" in (ROOT / "docs" / "TRAINING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_of_a_recipe_takes_its_images(name):
    """The named one: drop path, overlapping patches, pooling and width are checked when it is built."""
    cfg = load_config(ROOT / "configs" / name, ["MODEL.PRETRAINED", False])
    with torch.no_grad():
        output, pooled = Baseline(cfg).eval()(torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST))
    assert list(output.shape) == SHAPES[name]
    assert list(pooled.shape) == [1, cfg.MODEL.BACKBONE_EMB_SIZE]
    family, _, network = cfg.MODEL.NAME.rpartition(":")
    if family == "timm":  # the weights of this tag exist, and saw images scaled like this
        published = timm.get_pretrained_cfg(network, allow_unregistered=False)
        assert published.tag == network.partition(".")[2] and published.hf_hub_id
        assert list(published.mean) == cfg.INPUT.PIXEL_MEAN and list(published.std) == cfg.INPUT.PIXEL_STD
        patch = 14 if "patch14" in network else 1
        assert all(side % patch == 0 for side in cfg.INPUT.SIZE_TRAIN)


SLOW = {"osnet_x1_0.yml"}  # 8 to 20 measured seconds: to write its many small layers as ONNX takes most of them


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RECIPES]
)
def test_a_recipe_trains_validates_embeds_and_exports(name, tiny_recipe, toy, tmp_path, caplog):
    cfg = tiny_recipe(name)
    with caplog.at_level(logging.WARNING):
        (metrics,) = run_main(cfg, CTLModel, "run")
    assert [line for line in caplog.messages if "no effect" in line] == []
    assert 0 < metrics["instances"]["mAP"] <= 1 and 0 < metrics["centroids"]["mAP"] <= 1

    path = newest(tmp_path / "out")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] >= 2 * 2  # of two optimisers
    of_network, _ = checkpoint["optimizer_states"]
    numbers = [number for group in of_network["param_groups"] for number in group["params"]]
    assert sorted(of_network["state"]) == sorted(numbers)  # a step for every parameter
    rates = {group["initial_lr"] for group in of_network["param_groups"]}
    assert cfg.SOLVER.BASE_LR in rates and (cfg.SOLVER.BIAS_LR_FACTOR == 1 or 2 * cfg.SOLVER.BASE_LR in rates)

    model = CTLModel.load_from_checkpoint(path).eval()
    read = image_loader(exif_orientation=True)
    images = sorted((toy / "market1501" / "query").glob("*.jpg"))[:3]
    transform = ReidTransforms(cfg).build_transforms(is_train=False)
    pixels = torch.stack([transform(read(str(image))) for image in images])
    with torch.no_grad():
        expected = model.embed(pixels).numpy()
    assert expected.std() > 0
    close = partial(np.testing.assert_allclose, desired=expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    close(Embedder.from_checkpoint(path, "cpu").embed(images))

    facts = export_checkpoint(path, tmp_path / "network.onnx", "onnx")
    assert facts["image_size"] == list(cfg.INPUT.SIZE_TEST) and facts["pixel_mean"] == list(cfg.INPUT.PIXEL_MEAN)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    close(np.concatenate([session.run(None, {"images": pixels[i : i + 1].numpy()})[0] for i in range(len(pixels))]))


def test_a_recipe_with_sgd_drop_path_and_two_rates_resumes_bit_for_bit(tiny_recipe, tmp_path):
    whole, part, rest = (str(tmp_path / name) for name in ("whole", "part", "rest"))
    load = partial(tiny_recipe, "vit_base.yml", **{"MODEL.DROP_PATH": 0.5})
    run_main(load(**{"SOLVER.MAX_EPOCHS": 2, "OUTPUT_DIR": whole}), CTLModel, "run")
    run_main(load(OUTPUT_DIR=part), CTLModel, "run")
    resumed = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(newest(tmp_path / "part"))}
    torch.manual_seed(77)
    run_main(load(**resumed, **{"SOLVER.MAX_EPOCHS": 2, "OUTPUT_DIR": rest}), CTLModel, "run")
    assert_same_state(newest(tmp_path / "whole"), newest(tmp_path / "rest"))
