"""Test-time flip: the mean of an image's embedding and its mirror image's, wherever a model embeds."""

import pytest
import torch
from torch.nn.functional import normalize

from modelling.bases import ModelBase
from modelling.mirroring import embed_views
from tests.small import small_config
from tests.support import fill_by_recipe

IMAGES = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(2))


def test_the_mean_of_both_views():
    weights = torch.arange(24.0).reshape(1, 1, 4, 6)
    images = torch.arange(48.0).reshape(2, 1, 4, 6)
    seen = []

    def embed(views):
        seen.append(views)
        return (views * weights).flatten(1).sum(1, keepdim=True)

    assert torch.equal(embed_views(embed, images, False), embed(images))
    assert len(seen) == 2  # once each
    expected = [
        [sum((i[r, c] + i[r, 5 - c]) * (6 * r + c) for r in range(4) for c in range(6)) / 2] for i in images[:, 0]
    ]
    assert embed_views(embed, images, True).tolist() == expected
    assert len(seen) == 4


@pytest.fixture(scope="module")
def model():
    model = ModelBase(small_config(**{"TEST.FLIP": True}), num_classes=4, load_imagenet=False)
    model.load_state_dict(fill_by_recipe(model.state_dict()))
    return model.eval()


@torch.no_grad()
def test_a_model_embeds_both_views_where_it_is_validated_called_or_traced(model):
    one, other = model.embed(IMAGES), model.embed(IMAGES.flip(-1))
    expected = (one + other) / 2
    assert (one - other).abs().max() > 0.1
    rest = [torch.zeros(3)] * 3
    assert torch.equal(model.validation_step((IMAGES, *rest))["emb"], expected)
    assert torch.equal(model.test_step((IMAGES, *rest))["emb"], expected)
    assert torch.equal(model(IMAGES), expected)
    torch.testing.assert_close(model.to_torchscript()(IMAGES), expected)
    # Not the mean of unit vectors.
    assert not torch.allclose(normalize(expected), normalize(normalize(one) + normalize(other)), atol=1e-6)


@torch.no_grad()
def test_by_default_there_is_one_view(model):
    model.hparams.TEST.FLIP = False
    try:
        assert torch.equal(model.validation_step((IMAGES, *[torch.zeros(3)] * 3))["emb"], model.embed(IMAGES))
        assert torch.equal(model(IMAGES), model.embed(IMAGES))
    finally:
        model.hparams.TEST.FLIP = True
