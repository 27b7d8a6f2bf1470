"""The whole model: entries, optimisers and hyper-parameters, from a configuration and from a checkpoint."""

import json
import lzma

import pytest
import torch
from torch.utils.data import DataLoader

from checkpoints.reading import load_ctl_checkpoint
from config import cfg as shared_cfg
from config.load import load_config
from losses.centroid_triplet_loss import CentroidTripletLoss
from losses.layout import batch_layout
from modelling.bases import merge_hparams
from tests.small import small_config, small_options
from tests.support import GOLDEN, ROOT, assert_close, golden
from train_base_model import BaseModel
from train_base_model import CTLModel as BaseUnderItsOldName
from train_ctl_model import CTLModel
from utils.errors import UserError


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    path = tmp_path_factory.mktemp("legacy") / "legacy.ckpt"
    path.write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    return path


def test_state_dict_and_optimisers_of_the_whole_model_equal_the_recorded():
    cfg = load_config("", ["MODEL.PRETRAINED", False])
    model = CTLModel(cfg, num_query=10, num_classes=751)
    recorded = json.loads((GOLDEN / "state_dict_keys.json").read_text())["CTLModel(resnet50,num_classes=751)"]
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == recorded
    groups = json.loads((GOLDEN / "optimizer_groups.json").read_text())
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizers, (schedule,) = model.configure_optimizers()
    for optimizer, group in zip(optimizers, ("adam", "sgd"), strict=True):
        assert [names[p] for p in optimizer.param_groups[0]["params"]] == groups[group]["names"]
    assert schedule.get_last_lr() == [pytest.approx(1e-5)]  # a tenth: the first of ten warm-up epochs


def test_unused_classifier_of_ibn_networks_is_in_no_optimiser():
    model = CTLModel(small_config(**{"MODEL.NAME": "resnet50_ibn_a", "MODEL.BACKBONE_EMB_SIZE": 2048}), num_classes=5)
    optimized = {id(p) for optimizer in model.configure_optimizers()[0] for p in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in optimized}
    assert names == {"backbone.base.fc.weight", "backbone.base.fc.bias", "bn.bias"}


def test_hparams_are_cfg_overlaid_by_keywords_unless_only_test():
    cfg = small_config(**{"SOLVER.MARGIN": 0.7})
    stored = {"SOLVER": {"MARGIN": 0.1, "GAMMA": 0.2}, "num_classes": 5, "num_query": 3}
    model = CTLModel(cfg, **stored)
    assert (model.hparams.SOLVER.MARGIN, model.hparams.SOLVER.GAMMA, model.hparams.num_query) == (0.1, 0.2, 3)
    cfg.TEST.ONLY_TEST = True
    model = CTLModel(cfg, **stored)
    assert (model.hparams.SOLVER.MARGIN, model.hparams.SOLVER.GAMMA, model.hparams.num_query) == (0.7, 0.1, 3)
    assert cfg.SOLVER.GAMMA == 0.1


def test_hparams_can_be_set_and_do_not_touch_the_shared_configuration():
    model = CTLModel(small_config(), num_classes=5)
    model.hparams.MODEL.USE_CENTROIDS = True
    assert shared_cfg.MODEL.USE_CENTROIDS is False
    model.hparams = {"MODEL": {"NAME": "resnet34"}, "num_classes": 2}
    assert (model.hparams.MODEL.NAME, model.hparams.MODEL.USE_CENTROIDS) == ("resnet34", False)


def test_merge_keeps_unknown_keys_and_leaves_its_inputs_alone():
    before = shared_cfg.clone()
    merged = merge_hparams(shared_cfg, {"MODEL": {"NAME": "resnet18"}, "extra": {"a": 1}, "num_query": 4})
    assert (merged.MODEL.NAME, merged.extra.a, merged.num_query) == ("resnet18", 1, 4)
    assert before == shared_cfg


def test_legacy_checkpoint_with_and_without_configuration(legacy):
    model = CTLModel.load_from_checkpoint(legacy)
    assert (model.hparams.num_classes, model.hparams.num_query, model.hparams.MODEL.NAME) == (10, 160, "resnet18")
    assert model.hparams.SOLVER.MIN_LR == 0.0  # a key that it did not know
    assert not any(value.any() for value in model.state_dict().values())  # its weights are zeroed
    only_test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(legacy)}
    cfg = small_config(**only_test, **{"TEST.IMS_PER_BATCH": 7})
    model = CTLModel.load_from_checkpoint(str(legacy), cfg=cfg, num_classes=99)
    assert (model.hparams.TEST.IMS_PER_BATCH, model.fc_query.out_features) == (7, 10)
    with torch.inference_mode():
        _, features = model.eval().backbone(torch.rand(2, 3, 64, 32))
        assert model.bn(features).shape == (2, 512)


def test_what_a_loose_load_leaves_out_is_said(legacy, tmp_path):
    content = load_ctl_checkpoint(legacy)
    del content["state_dict"]["bn.running_mean"]
    content["state_dict"]["other.weight"] = torch.ones(1)
    torch.save(content, tmp_path / "loose.ckpt")
    with pytest.raises(UserError, match="does not fit"):
        CTLModel.load_from_checkpoint(tmp_path / "loose.ckpt")
    said = r"left as they start: 1 \(bn.running_mean\); left out, .* the model: 1 \(other.weight\)"
    with pytest.warns(UserWarning, match=said):
        CTLModel.load_from_checkpoint(tmp_path / "loose.ckpt", strict=False)


def test_loading_never_needs_the_imagenet_file(legacy):
    missing = {"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": "/nowhere.pth"}
    cfg = load_config(ROOT / "configs/256_resnet50.yml", small_options(**missing))
    assert CTLModel.load_from_checkpoint(legacy, cfg=cfg).hparams.MODEL.PRETRAINED is False  # the checkpoint's value


def test_configuration_of_another_network_is_named(legacy):
    resnet50 = {"MODEL.NAME": "resnet50", "MODEL.BACKBONE_EMB_SIZE": 2048}
    cfg = small_config(**resnet50, **{"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(legacy)})
    with pytest.raises(UserError, match="CTL checkpoint of resnet18, which does not fit MODEL.NAME resnet50"):
        CTLModel.load_from_checkpoint(legacy, cfg=cfg)


def test_missing_number_of_identities_and_automatic_optimisation_are_refused():
    with pytest.raises(UserError, match="num_classes is missing"):
        CTLModel(small_config())
    with pytest.raises(UserError, match="USE_AUTOMATIC_OPTIM"):
        CTLModel(small_config(**{"SOLVER.USE_AUTOMATIC_OPTIM": True}), num_classes=3)


def test_test_dataloader_is_what_the_trainer_gets():
    loader = DataLoader([1, 2])
    assert CTLModel(small_config(), test_dataloader=loader, num_classes=3).test_dataloader() is loader
    assert CTLModel(small_config(), lambda: loader, num_classes=3).test_dataloader() is loader


def test_the_base_script_offers_its_class_under_the_old_name():
    assert BaseUnderItsOldName is BaseModel


def test_centroids_method_takes_the_number_of_queries_from_hparams():
    data = golden("eval_a_s0")
    model = CTLModel(small_config(), num_classes=3, num_query=int(data["num_query"]))
    arguments = torch.from_numpy(data["feats"]), data["pids"], data["camids"]
    embeddings, labels, camids = model.validation_create_centroids(*arguments, respect_camids=True)
    assert_close(embeddings, data["cent_camids_emb"])
    assert list(labels) == data["cent_camids_labels"].tolist()
    assert [len(cameras) for cameras in camids] == data["cent_camids_camids_len"].tolist()


def test_masks_are_offered_by_the_model():
    masks, lists = CTLModel.create_masks_train(torch.tensor([4, 4, 9, 9]))
    assert masks.tolist() == [[False, True, False, True], [True, False, True, False]]
    assert lists == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("options", "is_soft"),
    [
        ({}, False),
        ({"SOLVER.SOFT_MARGIN": True}, True),
        ({"SOLVER.SOFT_MARGIN": True, "SOLVER.MARGIN": 0.9}, True),
        ({"SOLVER.MARGIN": None}, True),
    ],
)
def test_the_soft_margin_is_that_of_both_triplet_losses(options, is_soft):
    features, labels = torch.randn(12, 512), torch.arange(12) // 4
    model = CTLModel(small_config(**options), num_classes=3)
    loss, dist_ap, dist_an = model.query_triplet(features, labels)
    gap = dist_ap - dist_an
    assert_close(loss, (gap.exp().log1p() if is_soft else (gap + 0.5).relu()).mean())
    found = model.centroid_triplet(features, labels, labels >= 0, batch_layout(labels))
    assert_close(found.loss, CentroidTripletLoss(None if is_soft else 0.5)(features, labels).loss)


def test_a_test_builds_no_extra_losses():
    """So that it needs neither their code nor their package."""
    options = {"LOSSES.EXTRA": ["nowhere:Loss", "circle"], "LOSSES.EXTRA_WEIGHTS": [1.0, 2.0]}
    model = CTLModel(small_config(**options, **{"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": "a.pth"}), num_classes=3)
    assert not model.extra_losses.weights and list(model.losses_names) == list(CTLModel.losses_names)
    with pytest.raises(UserError, match="the module nowhere cannot be imported"):
        CTLModel(small_config(**options), num_classes=3)
