"""Batch norms folded into convolutions give what the plain network gives."""

import pytest
import torch
from torch import nn

from inference.embedding import folding
from inference.embedding.folding import FoldedNetwork, FusedBlock, FusedConv, fuses
from modelling.backbones import get_backbone
from modelling.baseline import Baseline
from tests.small import small_config
from tests.support import fill_by_recipe

NETWORKS = ("resnet18", "resnet50", "resnet50_ibn_a", "resnet18 with a ReLU in its stem")
CPU = torch.device("cpu")


def filled(module):
    module.load_state_dict(fill_by_recipe(module.state_dict()))
    return module.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """Backbone, BN neck, images, and what they give."""
    name, *more = request.param.split()
    cfg = small_config(**{"MODEL.NAME": name, "MODEL.STEM_RELU": bool(more)})
    backbone, bn = filled(Baseline(cfg)), filled(nn.BatchNorm1d(get_backbone(name).embedding_size))
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return backbone, bn, images, bn(backbone(images)[1])


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def cosines(found, expected):
    return nn.functional.cosine_similarity(found.double(), expected.double())


@pytest.mark.parametrize("fused", [True, False])
def test_equals_the_plain_network(network, fused, monkeypatch):
    backbone, bn, images, expected = network
    if not fused:
        monkeypatch.setattr(folding, "fuses", lambda dtype: False)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = FoldedNetwork(backbone, bn, torch.float32, CPU)
    assert any(isinstance(module, FusedBlock) for module in folded.modules()) == (fused and fuses(torch.float32))
    assert not any(isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) for module in folded.modules())
    with torch.inference_mode():
        assert relative(folded(images), expected) < 1e-5
        # the first batch has chosen how weights lie in memory; another shape must do as well
        wide = torch.randn(2, 3, 48, 40)
        assert relative(folded(wide), bn(backbone(wide)[1])) < 1e-5
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("fused", [True, False])
def test_bfloat16_points_the_same_way(network, fused, monkeypatch):
    backbone, bn, images, expected = network
    if not fused:
        monkeypatch.setattr(folding, "fuses", lambda dtype: False)
    with torch.inference_mode():
        found = FoldedNetwork(backbone, bn, torch.bfloat16, CPU)(images)
    assert found.dtype == torch.float32
    assert relative(found, expected) > 1e-4
    assert cosines(found, expected).min() > 0.9998


def test_convolutions_are_fused_wherever_torch_has_the_operators():
    assert fuses(torch.float32) == torch.backends.mkldnn.is_available()  # oneDNN


def test_float64(network):
    backbone, bn, images, expected = network
    with torch.inference_mode():
        found = FoldedNetwork(backbone, bn, torch.float64, CPU)(images)
    assert found.dtype == torch.float64
    assert relative(found, expected) < 1e-5


def test_the_neck_keeps_its_shift(network):
    backbone, bn, images, expected = network
    shifted = nn.BatchNorm1d(bn.num_features).eval()
    shifted.load_state_dict({**bn.state_dict(), "bias": bn.bias + 2})
    with torch.inference_mode():
        found = FoldedNetwork(backbone, shifted, torch.float32, CPU)(images)
    torch.testing.assert_close(found, expected + 2, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError("not built"), AttributeError("no such operator"), None])
def test_a_torch_without_the_operators_computes_without_them(error, monkeypatch):
    def broken(self, x, add=None):
        if error is not None:
            raise error
        return torch.zeros_like(x)  # an operator that is there and wrong

    monkeypatch.setattr(FusedConv, "forward", broken)
    fuses.cache_clear()
    try:
        assert not fuses(torch.float32)
    finally:
        fuses.cache_clear()
