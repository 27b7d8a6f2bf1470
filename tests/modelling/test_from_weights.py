"""Fine-tuning from a CTL checkpoint with its head, and models around weights that no CTL training wrote."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.plain import to_plain
from inference.embedding.embedder import Embedder
from modelling.bases import ModelBase
from modelling.from_weights import load_head, model_of_weights
from tests.small import small_config
from train_ctl_model import CTLModel
from utils.errors import CheckpointError, NotACtlCheckpointError, UserError

REFUSAL = NotACtlCheckpointError("no CTL checkpoint")


def filled(model: ModelBase) -> ModelBase:
    """The same model, every tensor of which differs from a new one's."""
    generator = torch.Generator().manual_seed(7)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) / 10 + 0.2)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A CTL checkpoint of 5 identities, and its state dict."""
    model = filled(CTLModel(small_config(), num_classes=5))
    path = tmp_path_factory.mktemp("trained") / "epoch=1.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, path)
    return path, model.state_dict()


def start_from(path: Path, identities: int, **model: Any) -> CTLModel:
    keys = {
        f"MODEL.{name}": value for name, value in ({"PRETRAINED": True, "PRETRAIN_PATH": str(path)} | model).items()
    }
    return CTLModel(small_config(**keys), num_classes=identities)


def parts_of(model: CTLModel, state: dict[str, torch.Tensor]) -> set[str]:
    """The parts of a model that equal those of a state dict."""
    own = model.state_dict()
    parts = {key.split(".")[0] for key in own}
    return {part for part in parts if all(torch.equal(v, state[k]) for k, v in own.items() if k.startswith(f"{part}."))}


def test_the_backbone_alone_is_taken_unless_the_head_is_asked_for(trained, caplog) -> None:
    path, state = trained
    with caplog.at_level(logging.INFO):
        assert parts_of(start_from(path, 5), state) == {"backbone"}
    assert caplog.messages == [
        f"Loaded a CTL checkpoint of resnet18 from {path} into MODEL.NAME resnet18: 100 of 100 tensors loaded (those "
        "under state_dict.backbone.base.), left out: 6 (center_loss.centers, bn.weight, bn.bias, ...), missing: none."
    ]


def test_the_head_too(trained, caplog) -> None:
    path, state = trained
    with caplog.at_level(logging.INFO):
        assert parts_of(start_from(path, 5, PRETRAIN_HEAD=True), state) == {"backbone", "bn", "fc_query", "center_loss"}
    assert caplog.messages[1:] == [f"Taken over from {path} too: BN neck, classifier and centres (5 identities)."]


def test_a_classifier_of_other_identities_stays_behind(trained, caplog) -> None:
    path, state = trained
    with caplog.at_level(logging.INFO):
        model = start_from(path, 8, PRETRAIN_HEAD=True)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if key.startswith("bn."))
    assert model.fc_query.weight.shape == (8, 512)
    assert caplog.messages[1:] == [
        f"Taken over from {path} too: BN neck; not the classifier and the centres, which are for 5 "
        "identities (here: 8)."
    ]


def test_a_learned_pooling_and_a_reduction_belong_to_the_head(tmp_path, caplog) -> None:
    keys = {"MODEL.POOLING": "gem", "MODEL.EMBED_DIM": 16}
    model = filled(CTLModel(small_config(**keys), num_classes=5)).eval()
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, tmp_path / "it.ckpt")
    torch.save(model.state_dict(), tmp_path / "state.pth")
    own = {"POOLING": "gem", "EMBED_DIM": 16, "PRETRAIN_HEAD": True}
    found = start_from(tmp_path / "it.ckpt", 5, **own)
    assert parts_of(found, model.state_dict()) == {"backbone", "bn", "fc_query", "center_loss"}
    images = torch.rand(2, 3, 32, 16)
    with torch.no_grad():
        expected = model(images)
    embedder = Embedder.from_checkpoint(tmp_path / "state.pth", "cpu", cfg=small_config(**keys))
    np.testing.assert_allclose(embedder.embed(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="without a BN neck that fits"):
        start_from(tmp_path / "it.ckpt", 5, **own | {"EMBED_DIM": 8})
    backbone = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.base.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    with pytest.raises(NotACtlCheckpointError, match=r"In a program, network= or cfg= names its network\.$"):
        Embedder.from_checkpoint(tmp_path / "backbone.pth", "cpu")
    with pytest.raises(UserError, match="EMBED_DIM is 16, but .* without that layer, whose weights would be random"):
        Embedder.from_checkpoint(tmp_path / "backbone.pth", "cpu", cfg=small_config(**keys))


def test_a_head_that_is_not_there_is_refused(trained, tmp_path) -> None:
    _, state = trained
    plain = {k.removeprefix("backbone.base."): v for k, v in state.items() if k.startswith("backbone.base.")}
    torch.save(plain, tmp_path / "resnet18.pth")
    with pytest.raises(
        UserError, match="PRETRAIN_HEAD is True, but .*resnet18.pth holds torchvision resnet18 weights, w"
    ):
        start_from(tmp_path / "resnet18.pth", 5, PRETRAIN_HEAD=True)
    # Nobody looks for it where nothing is started from.
    start_from(tmp_path / "none.pth", 5, PRETRAIN_HEAD=True, PRETRAINED=False)
    start_from(tmp_path / "none.pth", 5, PRETRAIN_HEAD=True, RESUME_TRAINING=True)
    keys = {"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": "none.pth", "MODEL.PRETRAIN_HEAD": True}
    CTLModel(small_config(**keys), num_classes=5, load_imagenet=False)


def backbone_file(state: dict[str, torch.Tensor], folder: Path, prefix: str = "") -> Path:
    inside = {k.removeprefix("backbone.base."): v for k, v in state.items() if k.startswith("backbone.base.")}
    torch.save({prefix + key: value for key, value in inside.items()}, folder / "resnet18.pth")
    return folder / "resnet18.pth"


def test_weights_of_a_backbone_become_a_model_of_its_pooled_features(trained, tmp_path, caplog) -> None:
    _, state = trained
    path = backbone_file(state, tmp_path, "module.encoder_q.")
    model = model_of_weights(ModelBase, path, small_config(), REFUSAL, num_classes=3, num_query=2).eval()
    assert caplog.messages == [
        f"{path} holds a MoCo checkpoint of resnet18, not a trained CTL model: embeddings are the pooled features of "
        "the backbone."
    ]
    assert (model.hparams.num_classes, model.hparams.num_query) == (3, 2)
    images = torch.rand(2, 3, 32, 16)
    with torch.inference_mode():
        _, pooled = model.backbone(images)
        torch.testing.assert_close(model(images), pooled, rtol=1e-5, atol=0)  # the neck divides by sqrt(1 + eps)
    assert all(torch.equal(v, state[f"backbone.{k}"]) for k, v in model.backbone.state_dict().items())


def test_the_state_dict_of_a_whole_model_brings_its_neck(trained, tmp_path, caplog) -> None:
    path, state = trained
    torch.save(state, tmp_path / "state.pth")
    model = model_of_weights(ModelBase, tmp_path / "state.pth", small_config(), REFUSAL, num_classes=1).eval()
    assert (
        "holds a CTL checkpoint of resnet18, without its settings: those of the configuration are used" in caplog.text
    )
    images = torch.rand(2, 3, 32, 16)
    with torch.inference_mode():
        assert torch.equal(model(images), CTLModel.load_from_checkpoint(path).eval()(images))


def test_files_that_do_not_fit_stay_errors(trained, tmp_path) -> None:
    _, state = trained
    path = backbone_file(state, tmp_path)
    large = small_config(**{"MODEL.NAME": "resnet34"})
    with pytest.raises(
        CheckpointError,
        match=r"100 of 180 tensors fit.*share of 0\.555 of.*Expected a CTL checkpoint, or weights of MODEL",
    ):
        model_of_weights(ModelBase, path, large, REFUSAL, num_classes=1)
    large.MODEL.PRETRAIN_MIN_SHARE = 0.5
    model_of_weights(ModelBase, path, large, REFUSAL, num_classes=1)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(NotACtlCheckpointError, match="^no CTL checkpoint$"):
        model_of_weights(ModelBase, path, large, REFUSAL, num_classes=1)
    with pytest.raises(UserError, match=r"set MODEL\.BACKBONE_EMB_SIZE 2048"):
        model_of_weights(ModelBase, path, small_config(**{"MODEL.NAME": "resnet50"}), REFUSAL, num_classes=1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_weights_that_are_no_numbers_to_compute_with_are_refused(trained, tmp_path, share) -> None:
    checkpoint, state = trained
    key = "backbone.base.layer4.1.bn2.running_var"
    broken = {**state, key: state[key] * torch.nan}
    path = backbone_file(broken, tmp_path)
    message = "but layer4.1.bn2.running_var holds NaN or infinity.$"
    with pytest.raises(UserError, match=f"^{path} holds torchvision resnet18 weights, {message}"):
        start_from(path, 5, PRETRAIN_MIN_SHARE=share)
    with pytest.raises(UserError, match=message):
        model_of_weights(ModelBase, path, small_config(), REFUSAL, num_classes=1)
    torch.save(torch.load(checkpoint) | {"state_dict": broken}, path)
    with pytest.raises(UserError, match=f"^{path}: this is a CTL checkpoint of resnet18, but {key} holds NaN"):
        ModelBase.load_from_checkpoint(path)


def test_an_error_names_the_file_once(trained, tmp_path) -> None:
    torch.save({"epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(NotACtlCheckpointError) as error:
        ModelBase.load_from_checkpoint(tmp_path / "a.pth")
    assert str(error.value).count("a.pth") == 1
    checkpoint, _ = trained
    content = torch.load(checkpoint)
    content["hyper_parameters"]["INPUT"]["SIZE_TEST"] = 64
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/a.pth records a value that cannot work: INPUT.SIZE"):
        ModelBase.load_from_checkpoint(tmp_path / "a.pth")


def test_the_first_of_several_processes_speaks(trained, tmp_path, monkeypatch, caplog) -> None:
    checkpoint, state = trained
    path = backbone_file(state, tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with caplog.at_level(logging.INFO):
        start_from(checkpoint, 5, PRETRAIN_HEAD=True)
        model_of_weights(ModelBase, path, small_config(), REFUSAL, num_classes=1)
        assert caplog.messages == []
        monkeypatch.setenv("LOCAL_RANK", "0")
        start_from(checkpoint, 5, PRETRAIN_HEAD=True)
        model_of_weights(ModelBase, path, small_config(), REFUSAL, num_classes=1)
    assert [message.split()[0] for message in caplog.messages] == ["Loaded", "Taken", "Loaded", str(path)]


def test_a_model_without_a_neck_takes_no_head(trained) -> None:
    path, _ = trained
    with pytest.raises(UserError, match="without a BN neck that fits this model"):
        load_head(torch.nn.Linear(1, 1), path)
