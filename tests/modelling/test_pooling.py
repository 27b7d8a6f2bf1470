"""How a network's output becomes one vector: pooling, reduction, and what is taken around the neck."""

import numpy as np
import pytest
import torch
from torch import nn

from inference.embedding.embedder import Embedder
from inference.embedding.exporting import export_checkpoint
from inference.embedding.folding import FoldedNetwork, PlainNetwork
from modelling.backbones import REGISTRY, Backbone, register_backbone
from modelling.baseline import Baseline
from modelling.pooling import POOLINGS, GeM, Reduction, pool
from tests.small import small_config
from train_ctl_model import CTLModel
from utils.compat import is_autocast_on
from utils.errors import UserError

MAP = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0)).double()


def gem(values, p=3.0, eps=1e-6):
    return np.mean(np.maximum(values, eps) ** p) ** (1 / p)


ORACLES = {"avg": np.mean, "max": np.max, "gem": gem, "avgmax": lambda values: (np.mean(values) + np.max(values)) / 2}


@pytest.mark.parametrize("name", ORACLES)
def test_maps_and_tokens_are_pooled_over_positions(name):
    module = POOLINGS[name]().double()
    expected = [[ORACLES[name](channel.numpy()) for channel in image] for image in MAP]
    np.testing.assert_allclose(pool(MAP, name, module).detach().numpy(), expected, rtol=1e-6)
    tokens = torch.cat([torch.full((2, 2, 5), 9.0).double(), MAP.flatten(2).mT], 1)  # two tokens of no position first
    np.testing.assert_allclose(pool(tokens, name, module, 2).detach().numpy(), expected, rtol=1e-6)


def test_a_class_token_and_vectors_are_taken_as_they_are():
    tokens = torch.randn(2, 7, 5)
    assert torch.equal(pool(tokens, "token", nn.Identity(), 1), tokens[:, 0])
    for name in POOLINGS:
        assert torch.equal(pool(tokens[:, 0], name, POOLINGS[name]()), tokens[:, 0])


@pytest.mark.parametrize(
    ("name", "output", "prefix", "message"),
    [
        ("token", torch.zeros(2, 5, 4, 3), 1, r"'token', which needs tokens with a class token; .* \[2, 5, 4, 3\]"),
        ("token", torch.zeros(2, 6, 5), 0, r"'token', which needs tokens with a class token; .* \[2, 6, 5\]"),
        ("avg", torch.zeros(2, 5, 4, 3, 1), 0, r"'avg', which needs a map, tokens or vectors; .* \[2, 5, 4, 3, 1\]"),
    ],
)
def test_what_cannot_be_pooled_is_refused_with_its_shape(name, output, prefix, message):
    with pytest.raises(UserError, match=message):
        pool(output, name, POOLINGS[name](), prefix)


class Patches(nn.Module):
    """Tokens of 8 x 8 patches, a class token first."""

    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 6, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x):
        patches = self.project(x).flatten(2).mT
        return torch.cat([self.token + patches.mean(1, keepdim=True), patches], 1)


@pytest.fixture
def patches(monkeypatch):
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_backbone("patches", Patches)


def build(**options):
    torch.manual_seed(0)
    model = CTLModel(small_config(**options), num_classes=4, num_query=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


OWN = {"MODEL.NAME": "patches", "MODEL.BACKBONE_EMB_SIZE": 0}
HEADS = [
    *({}, {"MODEL.POOLING": "gem"}, {"MODEL.POOLING": "max"}, {"MODEL.NECK_FEAT": "before"}),
    *({"MODEL.EMBED_DIM": 7}, {"MODEL.POOLING": "avgmax", "MODEL.EMBED_DIM": 7, "MODEL.NECK_FEAT": "before"}),
    *(OWN, OWN | {"MODEL.POOLING": "token"}, OWN | {"MODEL.POOLING": "gem", "MODEL.EMBED_DIM": 3}),
]


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_inference_and_export_give_what_the_model_embeds(patches, options, tmp_path):
    model = build(**options).eval()
    images = torch.randn(3, 3, 32, 16)
    with torch.no_grad():
        expected = model(images).numpy()
        _, features = model.backbone(images)
    width = options.get("MODEL.EMBED_DIM") or (6 if "MODEL.NAME" in options else 512)
    assert expected.shape == (3, width)
    assert torch.equal(features, torch.from_numpy(expected)) == (options.get("MODEL.NECK_FEAT") == "before")

    embedder = Embedder(model, "cpu", num_workers=0)
    assert isinstance(embedder.network, PlainNetwork if "MODEL.NAME" in options else FoldedNetwork)
    assert embedder.dimension == width
    np.testing.assert_allclose(embedder.network(images).numpy(), expected, rtol=1e-4, atol=1e-5)
    ways = {"pooling": options.get("MODEL.POOLING", "avg"), "neck_feat": options.get("MODEL.NECK_FEAT", "after")}
    assert embedder.identity == embedder.identity | ways

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, path)
    if "MODEL.NAME" not in options:  # a file alone does not decide which code is imported
        loaded = CTLModel.load_from_checkpoint(path).eval()
        with torch.no_grad():
            np.testing.assert_array_equal(loaded(images).numpy(), expected)
        facts = export_checkpoint(path, tmp_path / "model.pt", "torchscript")
        assert facts["embedding_size"] == width
    traced = model.to_torchscript(example_inputs=images)
    np.testing.assert_allclose(traced(images).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_network_that_is_not_folded_computes_in_the_precision_asked_for(patches, precision):
    model = build(**OWN).eval()
    images = torch.randn(3, 3, 32, 16)
    with torch.no_grad():
        expected = model(images).numpy()
    found = Embedder(model, "cpu", precision).network(images).numpy()
    assert found.dtype == (np.float64 if precision == "64-true" else np.float32)
    error = abs(found - expected).max()
    assert error < 1e-5 if precision == "64-true" else 1e-5 < error < 0.1


class OwnEmbedding(CTLModel):
    def embed(self, images):
        return 2 * self.bn(self.backbone(images)[1])


def test_an_embedding_of_a_subclass_is_that_of_inference_and_export():
    torch.manual_seed(0)
    model = OwnEmbedding(small_config(), num_classes=4, num_query=2).eval()
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        expected = 2 * model.bn(model.backbone(images)[1])
    embedder = Embedder(model, "cpu")
    assert isinstance(embedder.network, PlainNetwork)
    np.testing.assert_allclose(embedder.network(images).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.to_torchscript()(images).detach().numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_what_folding_would_change_runs_as_it_is(monkeypatch):
    model = build()
    monkeypatch.setattr("inference.embedding.folding._affine", lambda norm: (norm.weight.detach(), norm.bias.detach()))
    network = Embedder(model, "cpu").network
    assert isinstance(network, PlainNetwork)


def test_gem_learns_its_exponent_and_the_reduction_its_weights():
    model = build(**{"MODEL.POOLING": "gem", "MODEL.EMBED_DIM": 7})
    images = torch.randn(4, 3, 32, 16)
    model.classify(model.backbone(images)[1]).square().sum().backward()
    assert model.backbone.gap.p.grad.abs() > 0
    assert model.backbone.reduction.weight.grad.abs().sum() > 0
    assert model.center_loss.centers.shape == (4, 7) and model.bn.num_features == 7


def test_a_width_that_is_not_the_networks_is_refused(patches):
    with pytest.raises(UserError, match=r"BACKBONE_EMB_SIZE is 512, but patches .* size 6: .* 6, or 0 for"):
        build(**{"MODEL.NAME": "patches"})
    with pytest.raises(UserError, match=r"MODEL.POOLING is 'token', which needs tokens with a class token"):
        build(**{"MODEL.POOLING": "token"})


def test_the_reduction_keeps_its_digits_under_autocast():
    """And under autocast alone: elsewhere it is a plain linear layer, which exporters understand."""
    reduction, x = Reduction(64, 8), torch.randn(4, 64)
    expected = reduction(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_autocast_on("cpu")
        assert torch.equal(reduction(x), expected)
    assert not is_autocast_on("cpu")
    assert torch.equal(expected, x @ reduction.weight.T)


def test_the_reduction_has_a_shape_where_nothing_is_computed():
    assert Reduction(64, 8).to("meta")(torch.empty(4, 64, device="meta")).shape == (4, 8)


def test_gem_of_small_numbers_in_half_precision_has_a_gradient():
    pooling = GeM().half()
    pooling(torch.full((2, 3, 2, 2), 1e-7, dtype=torch.float16)).sum().backward()
    assert torch.isfinite(pooling.p.grad).all()


def test_vectors_are_not_pooled(monkeypatch):
    monkeypatch.setitem(
        REGISTRY.registered, "vectors", Backbone(lambda _: nn.Sequential(nn.AvgPool2d((32, 16)), nn.Flatten()), 0)
    )
    named = {"MODEL.NAME": "vectors", "MODEL.BACKBONE_EMB_SIZE": 0}
    assert Baseline(small_config(**named)).embedding_size == 3
    with pytest.raises(UserError, match=r"POOLING is 'gem', but MODEL.NAME vectors gives vectors, \[1, 3\]"):
        Baseline(small_config(**named, **{"MODEL.POOLING": "gem"}))
