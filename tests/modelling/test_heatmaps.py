"""Heat maps: exact shares of a similarity, roll-out against a plain computation, and a model that stays as it was."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.metrics import evaluate
from evaluation.retrieval import RetrievalSet
from modelling.bases import ModelBase
from modelling.evaluation import ranking_options, write_strips
from modelling.heatmaps import draw_over, find_map, roll_out, write_heatmaps
from tests.small import small_config
from tests.support import assert_close

SIZES = {"MODEL.BACKBONE_EMB_SIZE": 0, "INPUT.SIZE_TEST": [64, 32], "INPUT.SIZE_TRAIN": [64, 32]}
SMALL_VIT = {"MODEL.NAME": "timm:test_vit", **SIZES}


def build(**options):
    torch.manual_seed(0)
    model = ModelBase(small_config(**options), num_classes=4, load_imagenet=False)
    for value in (model.bn.weight, model.bn.bias, model.bn.running_mean, model.bn.running_var):
        nn.init.uniform_(value, 0.5, 1.5)
    return model.eval()


def draw_inputs(model, count=2):
    torch.manual_seed(1)
    images = torch.randn(count, 3, *model.hparams.INPUT.SIZE_TEST)
    with torch.no_grad():
        return images, model.embed(torch.randn_like(images))


def cosine(model, images, targets):
    with torch.no_grad():
        return nn.functional.cosine_similarity(model.embed(images), targets)


@pytest.mark.parametrize(("neck", "width"), [("after", 0), ("before", 0), ("after", 8)])
def test_with_average_pooling_a_place_has_what_the_head_makes_of_it(neck, width):
    model = build(**{"MODEL.NECK_FEAT": neck, "MODEL.EMBED_DIM": width, "INPUT.SIZE_TEST": [64, 48]})
    images, targets = draw_inputs(model)
    with torch.no_grad():
        features = model.backbone.base(images)  # [2, 512, 4, 3]
        head = model.bn if neck == "after" else nn.Identity()
        at_places = [head(model.backbone.reduction(place)) for place in features.flatten(2).unbind(2)]
        lengths = model.embed(images).norm(dim=1)
        towards = nn.functional.normalize(targets)
        expected = torch.stack([(place * towards).sum(1) / lengths for place in at_places], 1).view(2, 4, 3)
    found = find_map(model, images, targets)
    assert_close(found, expected)
    assert_close(found.mean((1, 2)), cosine(model, images, targets))


@pytest.mark.parametrize(
    "options",
    [
        {"MODEL.POOLING": "max"},
        {"MODEL.POOLING": "gem"},
        {"MODEL.POOLING": "avgmax"},
        {"MODEL.NAME": "osnet_x0_25", "MODEL.BACKBONE_EMB_SIZE": 512},  # its head has a ReLU
        {"MODEL.NAME": "timm:test_convnext", **SIZES},  # its head has a norm
    ],
)
def test_the_mean_of_a_map_is_the_similarity(options):
    model = build(**{"INPUT.SIZE_TEST": [64, 32]} | options)
    images, targets = draw_inputs(model)
    found = find_map(model, images, targets)
    assert_close(found.mean((1, 2)), cosine(model, images, targets))
    assert found.std() > 0


def test_with_maximum_pooling_only_the_maxima_have_shares():
    """Without a bias these are all: the rest is nothing (Euler's theorem on homogeneous functions)."""
    model = build(**{"MODEL.POOLING": "max", "MODEL.NECK_FEAT": "before", "INPUT.SIZE_TEST": [64, 48]})
    images, targets = draw_inputs(model, 1)
    with torch.no_grad():
        features = model.backbone.base(images).flatten(2)[0]  # [512, 12]
    at_maximum = torch.zeros(512, 12).scatter_(1, features.argmax(1, keepdim=True), 1.0)
    towards = nn.functional.normalize(targets)[0] / features.amax(1).norm()
    expected = (features * at_maximum * towards[:, None]).sum(0) * 12
    assert_close(find_map(model, images, targets).flatten(), expected)


class Tiny(nn.Module):
    """A model whose places are squares of 4 x 4 pixels, or that gives a vector."""

    def __init__(self, *after):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.base = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4, bias=False), nn.ReLU(), *after)
        self.hparams = small_config()
        nn.init.uniform_(self.backbone.base[0].weight)

    def embed(self, images):
        features = self.backbone.base(images)
        return features.mean((2, 3)) if features.dim() == 4 else features


def test_a_bright_square_is_where_the_map_is_highest():
    model = Tiny()
    image = torch.zeros(1, 3, 32, 16)
    image[:, :, 20:24, 8:12] = 1
    target = model.embed(torch.rand(1, 3, 32, 16)).detach()
    (found,) = find_map(model, image, target)
    assert found.argmax() == 5 * 4 + 2
    assert (found != found.min()).sum() == 1


def test_attention_rolled_out_is_as_in_a_plain_computation():
    model = build(**SMALL_VIT)
    network = model.backbone.base.network
    images, targets = draw_inputs(model)
    with torch.no_grad():
        tokens = network._pos_embed(network.patch_embed(images))
        rolled = np.broadcast_to(np.eye(9), (2, 9, 9))
        for block in network.blocks:
            attention = block.attn
            queries, keys, _ = (
                attention.qkv(block.norm1(tokens)).view(2, 9, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
            )
            weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1).double().numpy()  # [2, heads, 9, 9]
            rolled = (weights.mean(1) + np.eye(9)) / 2 @ rolled
            tokens = block(tokens)
    np.testing.assert_allclose(rolled.sum(-1), 1, rtol=1e-6)
    assert_close(find_map(model, images, targets), rolled[:, 1:, 1:].mean(1).reshape(2, 4, 2))
    model.backbone.pooling = "token"
    assert_close(find_map(model, images, targets), rolled[:, 0, 1:].reshape(2, 4, 2))


def test_the_grid_is_that_of_the_image():
    """Not that of the images in training, which has as many places here."""
    model = build(**SMALL_VIT | {"INPUT.SIZE_TEST": [32, 64]})
    images, targets = draw_inputs(model, 1)
    assert find_map(model, images, targets).shape == (1, 2, 4)


def test_rows_of_rolled_out_attention_sum_to_1():
    matrices = torch.rand(3, 2, 4, 5, 5).softmax(-1).unbind(0)
    rolled = roll_out(matrices)
    assert_close(rolled.sum(-1), np.ones((2, 5)))
    first, second, third = (matrix.mean(1)[0] / 2 + torch.eye(5) / 2 for matrix in matrices)
    assert_close(rolled[0], third @ second @ first)


@pytest.mark.parametrize("options", [{}, SMALL_VIT], ids=["resnet", "vit"])
def test_the_model_stays_as_it_was(options):
    """Also in the mode in which a Trainer tests, and with a compiled network."""
    model = build(**options)
    images, targets = draw_inputs(model)
    fused = [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")]
    expected = find_map(model, images, targets)
    assert all(fused) and fused == [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")]
    model.backbone.train()
    model.bn.weight.requires_grad_(False)
    model.backbone.base._compiled_call_impl = compiled = object()  # not to be called
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [(m.training, getattr(m, "fused_attn", None), len(m._forward_hooks)) for m in model.modules()]
    with torch.inference_mode():
        found = find_map(model, images.clone(), targets.clone())
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert flags == [(m.training, getattr(m, "fused_attn", None), len(m._forward_hooks)) for m in model.modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.backbone.base._compiled_call_impl is compiled
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.bn.weight.requires_grad


def test_a_network_that_fails_leaves_nothing_behind():
    model = build(**SMALL_VIT)
    fused = [block.attn.fused_attn for block in model.backbone.base.network.blocks]
    with pytest.raises(Exception, match="size"):
        find_map(model, torch.zeros(1, 3, 40, 40), torch.zeros(1, 64))
    assert torch.is_grad_enabled()
    assert fused == [block.attn.fused_attn for block in model.backbone.base.network.blocks]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("after", [[nn.Flatten()], [nn.Flatten(2)]], ids=["vector", "tokens without attention"])
def test_a_network_without_places_has_no_map(after):
    class Averaged(Tiny):
        def embed(self, images):
            return self.backbone.base(images).flatten(1)

    assert find_map(Averaged(*after), torch.rand(1, 3, 8, 8), torch.rand(1, 20)) is None


def test_colours_go_from_dark_blue_to_dark_red_over_the_image():
    values = np.array([[0.0, 1.0]], np.float32)
    drawn = draw_over(np.zeros((2, 8, 3), np.uint8), values)
    assert drawn[0, 0].tolist() == [24, 9, 30]  # halves of the first and of the last colour
    assert drawn[1, -1].tolist() == [61, 2, 2]
    flat = draw_over(np.full((2, 2, 3), 100, np.uint8), np.ones((3, 3), np.float32))
    assert (flat == [74, 59, 80]).all()


@pytest.fixture
def retrieval(tmp_path):
    """Two queries; the nearest image to both is the second one of the gallery."""
    paths = [str(tmp_path / f"{name}.png") for name in ("one", "two", "three", "a b")]
    for i, path in enumerate(paths):
        Image.new("RGB", (16, 32), (60 * i, 100, 50)).save(path)
    rows = torch.eye(512)[:3]
    gallery = torch.stack([rows[2], rows[0] + rows[1]])
    return RetrievalSet(rows[:2], gallery, [1, 2], [1, 2], [0, 0], [1, 1], paths[:2], paths[2:])


def visualize(model, retrieval, folder):
    model.hparams.OUTPUT_DIR = str(folder)
    results = {"instance": evaluate(retrieval, ranking_options(model.hparams, "instance"))}
    (page,) = write_strips(retrieval, results, model.hparams, model=model)
    return page


def test_the_page_links_to_the_maps_of_the_worst_queries(retrieval, tmp_path):
    model = build(**{"TEST.HEATMAPS": 1, "INPUT.RESIZE": "pad"})
    page = visualize(model, retrieval, tmp_path / "out")
    (drawn,) = (page.parent / "heatmaps").iterdir()
    assert drawn.name == "00000_one.png"  # its own image is the other one
    assert page.read_text(encoding="utf-8").count('"heatmaps/00000_one.png"') == 1
    with Image.open(drawn) as image:
        assert image.size == (4 * 16 + 3 * 4, 32)
        cells = np.asarray(image).reshape(32, -1, 3)
    assert (cells[:, :16] == [0, 100, 50]).all()  # the query, then its map, then its first result
    assert (cells[:, 40:56] == [180, 100, 50]).all()
    towards = retrieval.gallery[1:], retrieval.query[:1]
    planes = [torch.tensor([red, 100.0, 50.0]).view(1, 3, 1, 1).expand(1, 3, 32, 16) / 255 for red in (0, 180)]
    for start, plane, target in zip((20, 60), planes, towards, strict=True):
        mean, std = (torch.tensor(model.hparams.INPUT[key]).view(1, 3, 1, 1) for key in ("PIXEL_MEAN", "PIXEL_STD"))
        (found,) = find_map(model, (plane - mean) / std, target)
        pixels = (plane[0] * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.abs(draw_over(pixels, found.numpy()) - cells[:, start : start + 16].astype(int)).max() <= 1


def test_a_query_without_results_has_no_map(retrieval, tmp_path):
    """All its gallery images are of its own camera."""
    alone = replace(retrieval, q_pids=[1, 1], g_pids=[1, 1], q_camids=[1, 0])
    page = visualize(build(**{"TEST.HEATMAPS": 2}), alone, tmp_path / "out")
    assert [file.name for file in (page.parent / "heatmaps").iterdir()] == ["00001_two.png"]


def test_names_of_maps_stay_short(retrieval, tmp_path):
    long = tmp_path / f"{'é' * 120}.png"
    Path(retrieval.q_paths[0]).rename(long)
    named = replace(retrieval, q_paths=[str(long), retrieval.q_paths[1]])
    page = visualize(build(**{"TEST.HEATMAPS": 1}), named, tmp_path / "out")
    assert [file.name for file in (page.parent / "heatmaps").iterdir()] == [f"00000_{'é' * 50}.png"]


def test_none_are_drawn_unless_asked_for(retrieval, tmp_path):
    page = visualize(build(), retrieval, tmp_path / "out")
    assert not (page.parent / "heatmaps").exists()
    assert "heatmaps/" not in page.read_text(encoding="utf-8")


def test_a_network_that_has_none_is_told_once(retrieval, tmp_path):
    model = Tiny(nn.Flatten())
    model.hparams.TEST.HEATMAPS = 2
    results = {"instance": evaluate(retrieval), "again": evaluate(retrieval)}
    model.hparams.OUTPUT_DIR = str(tmp_path / "out")
    with pytest.warns(UserWarning, match="TEST.HEATMAPS 2: none are drawn, since MODEL.NAME resnet18 gives") as seen:
        write_strips(retrieval, {"instance": results["instance"]}, model.hparams, model=model)
    assert len(seen) == 1
    assert write_heatmaps(model, retrieval, [SimpleNamespace(query=0, images=np.array([0]))], tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()
