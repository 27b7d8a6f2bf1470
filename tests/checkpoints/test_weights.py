"""Recognising a network by the names of its entries."""

from pathlib import Path

import pytest
import torch

from checkpoints.reading import load_checkpoint
from checkpoints.weights import backbone_of, describe, identify_network
from modelling.backbones import BACKBONES, get_backbone


def test_describes_the_recorded_checkpoint(legacy_path: Path) -> None:
    assert describe(load_checkpoint(legacy_path)) == "a CTL checkpoint of resnet18"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_told_by_its_entries(name: str) -> None:
    with torch.device("meta"):
        state = get_backbone(name).build(1).state_dict()
    assert identify_network(state) == name
    last = max(int(key.split(".")[1]) for key in state if key.startswith("layer3."))
    assert identify_network(key for key in state if not key.startswith(f"layer3.{last}.")) is None
    content = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    assert describe(content) == f"{'IBN-a' if 'ibn' in name else 'torchvision'} {name} weights"
    assert backbone_of(content).keys() == state.keys() - {"fc.weight", "fc.bias"}


def test_other_entries_name_no_network() -> None:
    assert identify_network([]) is None
    assert identify_network(["layer1.0.conv1.bias", "xlayer1.0.conv1.weight", "features.0.weight"]) is None


def test_of_a_whole_model_the_backbone_alone_is_taken() -> None:
    state = {"backbone.base.conv1.weight": torch.ones(1), "backbone.base.fc.weight": torch.ones(2)}
    state |= {"bn.weight": torch.ones(3), "fc_query.weight": torch.ones(4)}
    assert list(backbone_of({"state_dict": state, "epoch": 2})) == ["conv1.weight"]
    assert describe({"state_dict": state}) == "a CTL checkpoint of an unknown network"
    assert backbone_of({"epoch": 2}) == {}


def test_a_prefix_stays_where_not_all_entries_have_it() -> None:
    assert list(backbone_of({"module.a": torch.ones(1), "b": torch.ones(1)})) == ["module.a", "b"]
