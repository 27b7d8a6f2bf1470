"""Networks of timm: what they compute, which weights they take, and what is refused."""

import copy
import logging
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from checkpoints.plain import to_plain
from inference.embedding.embedder import Embedder
from inference.embedding.exporting import export_checkpoint
from modelling.backbones import REGISTRY, NetworkOptions, get_backbone
from modelling.backbones.imagenet import load_imagenet_weights
from modelling.backbones.package_network import PackageNetwork
from modelling.backbones.timm_networks import OverlappingPatches, TimmNetwork, guess_grid
from modelling.baseline import Baseline
from modelling.parameters import find_distances
from tests.launch import run_code
from tests.modelling.test_computation import batch, fit
from tests.small import small_config
from tests.support import counting_saved_numbers
from train_ctl_model import CTLModel
from utils.compat import program_module
from utils.errors import CheckpointError, MissingPathError, UnknownNameError, UserError

SIZE, TALL = (64, 32), (96, 32)
STATIC = "vit_tiny_patch16_224"
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def build(name: str, size: tuple[int, int] = SIZE, **options: Any) -> Any:
    torch.manual_seed(0)
    return (
        get_backbone(f"timm:{name}").build(NetworkOptions(**{"image_size": size, "test_size": size} | options)).eval()
    )


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer of timm made small, which takes images of one size unless told otherwise, as test_vit does not."""
    shrink(monkeypatch, STATIC, embed_dim=32, depth=2, num_heads=2)


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, **small: Any) -> None:
    registry = timm.models._registry._model_entrypoints
    monkeypatch.setitem(registry, name, partial(registry[name], **small))


def vit(size: tuple[int, int] = SIZE, **options: Any) -> Any:
    return build("test_vit", size, **options)


def of_timm(network: Any, name: str, **options: Any) -> Any:
    """timm's own network with the same weights."""
    own = timm.create_model(name, num_classes=0, **options).eval()
    own.load_state_dict(network.network.state_dict())
    return own


# ----------------------------------------------------------------------------------------------------- what is computed

# name -> its arguments in timm, the shape for two images of 64 x 32, and whether a head follows the pooling
NETWORKS: dict[str, tuple[dict[str, Any], list[int], bool]] = {
    "test_vit": ({"img_size": SIZE}, [2, 1 + 8, 64], False),
    "test_convnext": ({}, [2, 64, 2, 1], True),
    "test_efficientnet": ({}, [2, 256, 2, 1], False),
    "test_resnet": ({}, [2, 96, 2, 1], False),
    "mobilenetv3_small_050": ({}, [2, 288, 2, 1], True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_timms(name: str) -> None:
    options, shape, has_head = NETWORKS[name]
    network = build(name)
    own = of_timm(network, name, **options)
    with torch.no_grad():
        found = network(IMAGES)
        assert list(found.shape) == shape
        assert torch.equal(found, own.forward_features(IMAGES))
        pooled = found.mean((2, 3)) if found.dim() == 4 else found[:, 0]
        assert hasattr(network, "after_pooling") is has_head
        pooled = network.after_pooling(pooled) if has_head else pooled
        torch.testing.assert_close(pooled, own(IMAGES), rtol=1e-4, atol=1e-5)
    assert network.num_prefix_tokens == (1 if name == "test_vit" else 0)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_maps_with_the_channel_last_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Swin transformer, made small; its images may have another size in tests."""
    size, other = (128, 64), (192, 64)
    name = "swin_tiny_patch4_window7_224"
    shrink(monkeypatch, name, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    network = build(name, size, test_size=other)
    own = of_timm(network, name, img_size=size, strict_img_size=False, drop_path_rate=0)
    for shape in (size, other):
        images = torch.randn(2, 3, *shape)
        with torch.no_grad():
            found, expected = network(images), own.forward_features(images)
        assert list(found.shape) == [2, 128, shape[0] // 32, shape[1] // 32]
        assert torch.equal(found, expected.permute(0, 3, 1, 2))


def test_tokens_of_a_head_with_its_norm_after_the_pooling() -> None:
    """timm pools before the last norm; the head gets what has been pooled."""
    network = build("test_vit_relpos" if timm.is_model("test_vit_relpos") else "vit_relpos_small_patch16_224")
    name = network.timm_name
    own = of_timm(network, name, img_size=SIZE)
    with torch.no_grad():
        pooled = network(IMAGES)[:, network.num_prefix_tokens :].mean(1)
        torch.testing.assert_close(network.after_pooling(pooled), own(IMAGES), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(pooled, own(IMAGES), rtol=1e-2)


TIMM = tuple(int(part) for part in timm.__version__.split(".")[:3])
DINOV3 = pytest.mark.skipif(TIMM < (1, 0, 20), reason="timm 1.0.20 is the first to have DINOv3")


@pytest.mark.parametrize("name", [pytest.param("vit_small_patch16_dinov3", marks=DINOV3), "eva02_tiny_patch14_224"])
def test_rotary_positions_take_images_of_two_sizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, name, embed_dim=32, depth=2, num_heads=2)
    patch = 16 if "16" in name else 14
    size, other = (4 * patch, 2 * patch), (6 * patch, 2 * patch)
    network = build(name, size, test_size=other, drop_path=0.1)
    own = of_timm(network, name, img_size=size, dynamic_img_size=True)
    for rows, columns in (size, other):
        images = torch.randn(2, 3, rows, columns)
        with torch.no_grad():
            found = network(images)
            assert list(found.shape) == [2, network.num_prefix_tokens + rows * columns // patch**2, 32]
            torch.testing.assert_close(found, own.forward_features(images))
    assert sorted(set((find_distances(network) or {}).values()))[-3:] == [1, 2, 3]  # two blocks and the stem
    pooled = network.train()(torch.randn(4, 3, *size)).mean(1)
    getattr(network, "after_pooling", nn.Identity())(pooled).sum().backward()
    assert all((p.grad is not None) is p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("options", [{}, {"patch_stride": 12, "drop_path": 0.1}])
def test_a_network_made_for_one_size_takes_another_outside_of_a_training(options: dict[str, Any]) -> None:
    network, both = build(STATIC, **options), build(STATIC, test_size=TALL, **options)
    both.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, *TALL)
    with pytest.raises(UserError, match=r"cannot compute images of 96 x 32 pixels"):
        network(images)  # with gradients
    copied = copy.deepcopy(network)
    with torch.inference_mode():
        expected = both(images)
        for one in (network, copied, network):
            torch.testing.assert_close(one(images), expected)
        torch.testing.assert_close(network(IMAGES), build(STATIC, **options)(IMAGES))


def test_a_checkpoint_is_tested_embedded_and_exported_at_sizes_of_their_own(tmp_path: Path) -> None:
    sizes = {"INPUT.SIZE_TRAIN": list(SIZE), "INPUT.SIZE_TEST": list(SIZE)}
    named = {"MODEL.NAME": f"timm:{STATIC}", "MODEL.BACKBONE_EMB_SIZE": 0}
    model = CTLModel(small_config(**named, **sizes), num_classes=3).eval()
    path = tmp_path / "it.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, path)
    images = torch.randn(2, 3, *TALL, generator=torch.Generator().manual_seed(3))
    # A test takes the size of the training from the checkpoint, whatever a file of its own says.
    cfg = small_config(
        **named, **{"INPUT.SIZE_TRAIN": [128, 64], "INPUT.SIZE_TEST": list(TALL)},
        **{"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(path)},
    )  # fmt: skip
    tested = CTLModel.load_from_checkpoint(path, cfg=cfg).eval()
    assert list(tested.hparams.INPUT.SIZE_TRAIN) == list(SIZE) and list(cfg.INPUT.SIZE_TRAIN) == [128, 64]
    with torch.no_grad():
        expected = tested(images)
    embedder = Embedder.from_checkpoint(path, "cpu", size=TALL)
    np.testing.assert_allclose(embedder.embed(images), expected, rtol=1e-4, atol=1e-5)
    assert export_checkpoint(path, tmp_path / "it.pt", "torchscript", size=TALL)["image_size"] == list(TALL)
    found = torch.jit.load(tmp_path / "it.pt")(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_misspelt_tag_lists_the_right_ones() -> None:
    message = "has no weights 'orig_in21k_ft' of vit_base_patch16_224; it has .*vit_base_patch16_224.orig_in21k_ft_in1k"
    with pytest.raises(UnknownNameError, match=message):
        get_backbone("timm:vit_base_patch16_224.orig_in21k_ft")


@pytest.mark.parametrize("size", [(64, 32), (96, 32)])
def test_positions_of_a_distilled_network_leave_out_those_of_its_token(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
        shrink(monkeypatch, name, embed_dim=32, depth=1, num_heads=2)
    distilled: Any = timm.create_model("deit_tiny_distilled_patch16_224", img_size=SIZE, num_classes=0)
    network = build("deit_tiny_patch16_224", size)
    fit = network.fit_weights(distilled.state_dict())
    found, rows = fit.weights["network.pos_embed"], distilled.pos_embed.detach()
    plain = torch.cat([rows[:, :1], rows[:, 2:]], 1)
    torch.testing.assert_close(found, resample_abs_pos_embed(plain, [size[0] // 16, size[1] // 16], [4, 2]))
    for other in (SIZE, (80, 16)):  # 5 patches: without one more for the token that is not there, they make a square
        plain_network = timm.create_model("deit_tiny_patch16_224", img_size=other, num_classes=0)
        fit = build("deit_tiny_distilled_patch16_224", size).fit_weights(plain_network.state_dict())
        assert {"pos_embed", "dist_token"} <= set(fit.missing)


def test_a_pooling_of_its_own_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's attention pooling would be a part that no gradient reaches."""
    name = "vit_base_patch16_siglip_224"
    shrink(monkeypatch, name, embed_dim=16, depth=1, num_heads=2)
    network = build(name)
    assert list(network(IMAGES).shape) == [2, 8, 16]
    assert not [key for key in network.state_dict() if "attn_pool" in key]
    assert network.num_prefix_tokens == 0


def test_what_is_not_used_needs_no_gradient() -> None:
    """Its head works on a map rather than on pooled features."""
    network = build("vgg11", (64, 64))
    frozen = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"pre_logits"} and not hasattr(network, "after_pooling")
    network(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all((p.grad is not None) is p.requires_grad for p in network.parameters())


def test_class_tokens_alone_are_averaged() -> None:
    network = build("pit_ti_224")
    assert list(network(IMAGES).shape) == [2, 1, 256] and network.num_prefix_tokens == 0


# ---------------------------------------------------------------------------------------------------- sizes and patches


@pytest.mark.parametrize(("stride", "grid"), [(0, (4, 2)), (12, (5, 2)), (16, (4, 2)), (7, (7, 3))])
def test_patches_may_overlap(stride: int, grid: tuple[int, int]) -> None:
    network = build(STATIC, patch_stride=stride)
    tokens = network(IMAGES)
    assert network.network.patch_embed.grid_size == grid
    assert list(tokens.shape) == [2, 1 + grid[0] * grid[1], 32]
    assert list(vit(patch_stride=stride)(IMAGES).shape) == [2, 1 + grid[0] * grid[1], 64]
    proj = network.network.patch_embed.proj
    with torch.no_grad():
        patches = network.network.patch_embed(IMAGES)  # by a plain loop:
        weight, step = proj.weight.flatten(1), stride or 16
        for row in range(grid[0]):
            for column in range(grid[1]):
                pixels = IMAGES[:, :, row * step :, column * step :][:, :, :16, :16].flatten(1)
                expected = pixels @ weight.T + proj.bias
                torch.testing.assert_close(patches[:, row * grid[1] + column], expected, rtol=1e-4, atol=1e-4)


def test_the_grid_of_transreid() -> None:
    patches = OverlappingPatches(12, (256, 128), embed_dim=4)
    assert (patches.grid_size, patches.num_patches) == ((21, 10), 210)
    assert patches.feat_ratio() == 12 and patches.feat_ratio(as_scalar=False) == (12, 12)
    whole = OverlappingPatches(12, (256, 128), embed_dim=4, output_fmt="NHWC", norm_layer=nn.LayerNorm)
    assert list(whole(torch.zeros(1, 3, 384, 128)).shape) == [1, 31, 10, 4]
    assert list(OverlappingPatches(12, 64, embed_dim=4, flatten=False)(torch.zeros(1, 3, 64, 64)).shape) == [1, 4, 5, 5]


@pytest.mark.parametrize("name", ["test_vit", STATIC])
@pytest.mark.parametrize("stride", [0, 12])
def test_images_of_another_size_in_tests(stride: int, name: str) -> None:
    """Position embeddings are interpolated, as timm does it; those in the checkpoint stay those of training."""
    network, fixed = build(name, test_size=TALL, patch_stride=stride), build(name, patch_stride=stride)
    assert network.state_dict()["network.pos_embed"].shape == fixed.network.pos_embed.shape
    images = torch.randn(2, 3, *TALL)
    tall = build(name, TALL, patch_stride=stride)
    old, new = ((5, 2), (7, 2)) if stride else ((4, 2), (6, 2))
    state = dict(network.state_dict())
    state["network.pos_embed"] = resample_abs_pos_embed(state["network.pos_embed"], list(new), list(old))
    tall.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(images), tall(images))
        torch.testing.assert_close(network(IMAGES), fixed(IMAGES))


@pytest.mark.parametrize("stride", [0, 12])
def test_a_size_that_is_unknown_is_refused_in_one_line(stride: int) -> None:
    network = build(STATIC, patch_stride=stride)
    message = rf"timm:{STATIC} cannot compute images of 96 x 32 pixels \(.*\). Choose other sizes \(INPUT.SIZE_TRAIN, "
    with pytest.raises(UserError, match=message) as caught:
        network(torch.zeros(1, 3, *TALL))
    assert "\n" not in str(caught.value)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "levit_128s",
        {"size": (64, 64), "test_size": (96, 64)},
        "timm:levit_128s cannot compute images of 96 x 64 pixels",
    ),
    (
        "nest_tiny",
        {},
        r"timm:nest_tiny cannot compute images of 64 x 32 pixels \(AssertionError: Model only handles sq",
    ),
    (
        "coat_tiny",
        {},
        r"timm:coat_tiny turns an image \[1, 3, 64, 32\] into a list; expected a feature map \[1, 152, h, w",
    ),
    ("vgg11", {"drop_path": 0.1}, "MODEL.DROP_PATH is 0.1, but timm:vgg11 has no drop path: set MODEL.DROP_PATH 0"),
    (
        "test_convnext",
        {"patch_stride": 12},
        "MODEL.PATCH_STRIDE is 12, but timm:test_convnext has no patches that could",
    ),
    ("test_vit", {"patch_stride": 17}, "MODEL.PATCH_STRIDE is 17; expected 1 to 16, the size of a patch, or 0"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_a_network_does_not_offer(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)


def test_an_output_of_another_width_is_refused_with_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    network = vit()
    monkeypatch.setattr(network, "features", lambda images: torch.zeros(1, 64, 9))
    with pytest.raises(
        UserError, match=r"into \[1, 64, 9\]; expected a feature map \[1, 64, h, w\], tokens \[1, N, 64\] or"
    ):
        network.check(64, SIZE)
    monkeypatch.setattr(network, "features", lambda images: torch.zeros(1, 2, 3, 4, 5))
    with pytest.raises(UserError, match=r"into \[1, 2, 3, 4, 5\]; expected a feature map \[1, D, h, w\]"):
        network.check(0, SIZE)


def test_unknown_names_and_code_elsewhere() -> None:
    with pytest.raises(
        UnknownNameError, match=r"'timm:vit_smal', but timm [\d.]+ has no network 'vit_smal'; of its \d+,.*"
    ):
        get_backbone("timm:vit_smal")
    with pytest.raises(UnknownNameError, match=r"closest: .*test_vit"):
        get_backbone("timm:test_vitt")
    assert not REGISTRY.is_code_elsewhere("timm:test_vit") and REGISTRY.is_code_elsewhere("timmy:test_vit")
    with pytest.raises(
        UnknownNameError, match=r"resnet152_ibn_a, .*timm:<name>, torchvision:<name>; or package.module:name"
    ):
        get_backbone("vit")
    assert not REGISTRY.is_in_family("timm")


# ---------------------------------------------------------------------------------------------------------- in training


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_drop_path_rises_to_its_rate(rate: float) -> None:
    for name in ("test_convnext", "test_vit"):  # both have another default in some networks of their families
        network = build(name, drop_path=rate)
        rates = [float(getattr(m, "drop_prob", 0) or 0) for m in network.modules() if type(m).__name__ == "DropPath"]
        assert max(rates, default=0.0) == pytest.approx(rate) and network.draws is bool(rate)


def test_swins_own_drop_path_is_not_taken() -> None:
    network = build("swin_tiny_patch4_window7_224", (64, 64))
    assert not network.draws


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    plain = build(name).train()
    recomputed = copy.deepcopy(plain)
    assert not recomputed.grad_checkpoint
    recomputed.grad_checkpoint = True
    assert recomputed.grad_checkpoint
    kept = []
    for network in (plain, recomputed):
        with counting_saved_numbers() as saved, warnings.catch_warnings():
            warnings.simplefilter("error")
            found = network(IMAGES)
        found.square().mean().backward()
        kept.append(sum(saved))
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
    assert kept[1] < 0.8 * kept[0]
    recomputed.grad_checkpoint = False
    assert not recomputed.network.grad_checkpointing if name == "test_vit" else True


def test_what_cannot_be_recomputed() -> None:
    with pytest.raises(UserError, match="timm:test_resnet has batch norm, whose running statistics timm would update"):
        build("test_resnet").grad_checkpoint = True
    network = vit()
    network.network.set_grad_checkpointing = partial(_refuse_to_recompute)
    network.grad_checkpoint = False
    with pytest.raises(UserError, match="GRAD_CHECKPOINT is True, which timm does not offer for timm:test_vit"):
        network.grad_checkpoint = True


def _refuse_to_recompute(enable: bool) -> None:
    assert not enable, "gradient checkpointing not supported"


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_rates_by_block_and_decay_are_those_of_timm(name: str) -> None:
    """Of the whole model, compared with a network of timm that has a classifier."""
    size = [128, 64] if "swin" in name else list(SIZE)
    more = {"SOLVER.LAYER_DECAY": 0.5, "SOLVER.NO_DECAY": True, "SOLVER.WEIGHT_DECAY": 0.1, "SOLVER.BASE_LR": 1.0}
    sizes = {"MODEL.BACKBONE_EMB_SIZE": 0, "INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size}
    model = CTLModel(small_config(**{"MODEL.NAME": f"timm:{name}"}, **sizes, **more), num_classes=3)
    groups = model.configure_optimizers()[0][0].param_groups
    found = {id(p): (group["initial_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    full: Any = timm.create_model(name, num_classes=3)
    names = {id(parameter): key for key, parameter in full.named_parameters()}
    listed = full.no_weight_decay() if hasattr(full, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(full, 0.1, no_weight_decay_list=listed, layer_decay=0.5)
    expected = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    own = {key: found[id(p)] for key, p in model.backbone.base.network.named_parameters()}
    assert own == {key: expected[key] for key in own}
    assert len(set(own.values())) > 3


def test_a_network_without_groups() -> None:
    with pytest.raises(UserError, match="LAYER_DECAY is 0.5, but the network does not tell the order of its layers"):
        sizes = {"INPUT.SIZE_TRAIN": [64, 64], "INPUT.SIZE_TEST": [64, 64], "MODEL.BACKBONE_EMB_SIZE": 0}
        model_of({"MODEL.NAME": "timm:pit_ti_224", "SOLVER.LAYER_DECAY": 0.5} | sizes).configure_optimizers()


def model_of(opts: dict[str, Any]) -> Any:
    sizes = {"INPUT.SIZE_TRAIN": [16, 12], "INPUT.SIZE_TEST": [16, 12]}
    cfg = small_config(**sizes | {"MODEL.NAME": "timm:test_vit", "MODEL.BACKBONE_EMB_SIZE": 64} | opts)
    torch.manual_seed(0)
    return CTLModel(cfg, num_classes=6, num_query=2)


@pytest.fixture
def small_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_vit with patches of 4 pixels: the batches of the shared tests are 16 x 12."""
    shrink(monkeypatch, "test_vit", patch_size=4)


SETTINGS: dict[str, dict[str, Any]] = {
    "drop path": {"MODEL.DROP_PATH": 0.5},
    "overlap": {"MODEL.PATCH_STRIDE": 3},
    "recomputed": {"MODEL.GRAD_CHECKPOINT": True, "MODEL.DROP_PATH": 0.5},
    "contiguous": {"MODEL.CHANNELS_LAST": False},
}


@pytest.mark.usefixtures("small_patches")
@pytest.mark.parametrize("setting", SETTINGS)
def test_steps_train_every_parameter(setting: str) -> None:
    model = model_of(SETTINGS[setting])
    assert all(module.training for module in model.backbone.modules())
    before = {name: value.clone() for name, value in model.named_parameters()}
    fit(model, batch(), max_epochs=2)
    still = [
        name for name, value in model.named_parameters() if value.requires_grad and torch.equal(value, before[name])
    ]
    assert still == []


@pytest.mark.usefixtures("small_patches")
def test_recomputing_draws_the_same_and_drop_path_depends_on_the_step_alone() -> None:
    states = []
    for recompute in (False, True):
        model = model_of({"MODEL.GRAD_CHECKPOINT": recompute, "MODEL.DROP_PATH": 0.5})
        torch.manual_seed(int(recompute))
        fit(model, batch(), copies=2, max_epochs=1)
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], msg=name)


@pytest.mark.slow
@pytest.mark.by_hand
@pytest.mark.usefixtures("small_patches")
def test_compiled_it_gives_the_same() -> None:
    states = []
    for compiled in (False, True):
        model = model_of({"MODEL.COMPILE": compiled})
        fit(model, batch(), max_epochs=1)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_it_can_be_copied_and_pickled_under_plain_names() -> None:
    for network in (vit(patch_stride=12), build("test_convnext")):
        for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(again(IMAGES), network(IMAGES))
            if hasattr(network, "after_pooling"):
                assert again.after_pooling.network is again.network
    assert b"modelling.backbones.timm_networks" in pickle.dumps(vit())


def test_timm_is_imported_only_where_a_name_asks_for_it() -> None:
    code = """if True:
        import sys
        from modelling.backbones import get_backbone, REGISTRY
        from modelling.baseline import Baseline
        get_backbone("resnet18"), REGISTRY.is_code_elsewhere("timm:test_vit")
        assert "timm" not in sys.modules
        sys.modules["timm"] = None  # as where it is not installed
        get_backbone("timm:test_vit")
    """
    done = run_code(code)
    assert done.stderr.splitlines()[-1] == (
        "utils.errors.UserError: MODEL.NAME timm:test_vit needs the package timm, which cannot be imported (import of "
        "timm halted; None in sys.modules): pip install 'centroids-reid[backbones]'"
    )


# -------------------------------------------------------------------------------------------------------------- weights


def drawn(network: Any) -> dict[str, Tensor]:
    """Weights of timm's own network under its names, all different."""
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(value.shape, generator=generator) / 10 if value.is_floating_point() else value
        for name, value in network.network.state_dict().items()
    }


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def to_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of OpenAI's CLIP for an image tower of timm."""
    swaps = [("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")]
    swaps += [("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("norm1", "ln_1"), ("norm2", "ln_2")]
    swaps += [("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]
    found = {}
    for name, value in state.items():
        if name == "cls_token":
            name, value = "class_embedding", value[0, 0]
        elif name == "pos_embed":
            name, value = "positional_embedding", value[0]
        elif name.startswith("norm."):
            name = name.replace("norm", "ln_post")
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)
        found[name] = value
    return found


HEAD = {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
# naming -> what makes a file of weights, and where in it the backbone is said to be
FILES: dict[str, tuple[Any, str]] = {
    "timm": (lambda state: {**state, **HEAD}, ""),
    "TransReID": (lambda state: {**prefixed("base.", state), "classifier.weight": torch.ones(3, 64)}, "base."),
    "TransReID-SSL": (
        lambda state: {
            "student": prefixed("module.backbone.", {k: v + 1 for k, v in state.items()}),
            "teacher": prefixed("backbone.", state) | {"head.mlp.0.weight": torch.ones(4, 64)},
            "epoch": 3,
        },
        "teacher.backbone.",
    ),
    "iBOT": (
        lambda s: {"teacher": prefixed("module.backbone.", {**s, "masked_embed": torch.ones(1, 64)})},
        "teacher.module",
    ),
    "DINO": (lambda state: {"state_dict": prefixed("module.", state)}, "state_dict.module."),
}


def load(
    network: Any, content: dict[str, Any], path: Path, caplog: pytest.LogCaptureFixture, share: float = 1.0
) -> str:
    """Load a file with this content; what was logged."""
    torch.save(content, path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_imagenet_weights(network, str(path), network.name, share)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("modelling")]
    return line


@pytest.mark.parametrize("naming", FILES)
def test_files_of_every_naming(naming: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, place = FILES[naming]
    network = vit()
    state = drawn(network)
    line = load(network, make(state), tmp_path / "w.pth", caplog)
    for name, value in network.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert f"into MODEL.NAME timm:test_vit: {len(state)} of {len(state)} tensors loaded" in line
    assert f"(those under {place}" in line if place else "those" not in line
    assert "interpolated" not in line and line.endswith("missing: none.")


def test_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = vit()
    state = drawn(network)
    save_file(state, tmp_path / "w.safetensors")
    load_imagenet_weights(network, str(tmp_path / "w.safetensors"), "timm:test_vit")
    assert all(torch.equal(value, state[name]) for name, value in network.network.state_dict().items())


@pytest.mark.parametrize("prefix", ["image_encoder.", "visual.", "module.visual."])
def test_clips_image_tower(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP-ReID and OpenAI's own files; its text tower, of the same width here, is left out."""
    name = "vit_base_patch16_clip_224"
    shrink(monkeypatch, name, embed_dim=16, depth=2, num_heads=2)
    network, old = build(name), build(name, (64, 64))
    state = drawn(old)
    tower = to_openai(state) | {"proj": torch.ones(16, 8)}
    text = {k: v + 1 for k, v in to_openai(state).items() if k.startswith("transformer.")}
    content = prefixed(prefix, tower) | prefixed("text_encoder.", text) | {"bottleneck.weight": torch.ones(16)}
    line = load(network, content, tmp_path / "w.pth", caplog)
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [4, 2], [4, 4])
    for key, value in network.network.state_dict().items():
        torch.testing.assert_close(value, state[key], msg=key, rtol=0, atol=0)
    assert f"tensors loaded (those under {prefix}), interpolated: 1 (pos_embed 4 x 4 to 4 x 2)" in line, line


@pytest.mark.parametrize(
    ("size", "grid"), [((64, 64), (4, 4)), ((96, 32), (6, 2)), ((80, 48), (5, 3)), ((32, 32), (2, 2))]
)
@pytest.mark.parametrize("stride", [0, 12])
def test_position_embeddings_of_another_grid(
    size: tuple[int, int], grid: tuple[int, int], stride: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As timm's function interpolates them, from the grid that they were made for and not from a square."""
    network = vit(patch_stride=stride)
    state = drawn(vit(size))
    line = load(network, {"model": state}, tmp_path / "w.pth", caplog)
    new = (5, 2) if stride else (4, 2)
    expected = resample_abs_pos_embed(state["pos_embed"], list(new), list(grid))
    assert torch.equal(network.network.pos_embed, expected)
    text = f"interpolated: 1 (pos_embed {grid[0]} x {grid[1]} to {new[0]} x {new[1]})"
    assert text in line and "missing: none" in line
    again = vit()
    (found,) = load(again, {"model": drawn(again)}, tmp_path / "w.pth", caplog).split("interpolated")  # nothing to do
    assert found


def test_a_grid_of_as_many_patches_as_the_published_weights_have() -> None:
    """28 x 7 patches, as many as the 14 x 14 that timm takes for granted, from 30 x 8."""
    network, old = build(STATIC, (448, 112)), build(STATIC, (480, 128))
    state = drawn(old)
    fit = network.fit_weights(state)
    expected = resample_abs_pos_embed(state["pos_embed"], [28, 7], [30, 8])
    assert torch.equal(fit.weights["network.pos_embed"], expected)
    assert fit.interpolated == ["pos_embed 30 x 8 to 28 x 7"]


def test_patches_of_another_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = vit()
    shrink(monkeypatch, "test_vit", patch_size=8)
    network, state = vit(), drawn(old)
    line = load(network, state, tmp_path / "w.pth", caplog)
    text = "interpolated: 2 (patch_embed.proj.weight [64, 3, 16, 16] to [64, 3, 8, 8], pos_embed 4 x 2 to 8 x 4)"
    assert text in line
    expected = timm.layers.resample_patch_embed(state["patch_embed.proj.weight"], [8, 8])
    assert torch.equal(network.network.patch_embed.proj.weight, expected)


def test_registers_of_dinov2(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file has a position for the class token, which timm adds to that token."""
    name = "vit_small_patch14_reg4_dinov2"
    shrink(monkeypatch, name, embed_dim=16, depth=1, num_heads=2)
    network, square = build(name, (56, 28)), build(name, (56, 56))
    state = drawn(square)
    positions = torch.cat([torch.ones(1, 1, 16), state["pos_embed"]], dim=1)
    content = {k: v for k, v in state.items() if k not in ("reg_token", "pos_embed")}
    content |= {"register_tokens": state["reg_token"], "pos_embed": positions, "mask_token": torch.zeros(1, 16)}
    line = load(network, content, tmp_path / "w.pth", caplog)
    assert "interpolated: 1 (pos_embed 4 x 4 to 4 x 2)" in line
    own = network.network
    torch.testing.assert_close(own.cls_token, state["cls_token"] + 1)
    assert torch.equal(own.reg_token, state["reg_token"]) and network.num_prefix_tokens == 5
    expected = resample_abs_pos_embed(state["pos_embed"], [4, 2], [4, 4], num_prefix_tokens=0)
    assert torch.equal(own.pos_embed, expected)


@pytest.mark.parametrize(
    ("count", "like", "grid"),
    [
        (196, (16, 8), (14, 14)),
        (128, (24, 8), (16, 8)),
        (210, (16, 8), (21, 10)),
        (192, (16, 8), (24, 8)),  # 16 x 12 is as close
        (128, (8, 16), (8, 16)),
        (1, (4, 2), (1, 1)),
        (7, (4, 2), (7, 1)),
    ],
)
def test_a_grid_by_the_number_of_its_patches(count: int, like: tuple[int, int], grid: tuple[int, int]) -> None:
    assert guess_grid(count, like) == grid


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    network = vit()
    state = drawn(network)
    torch.save({**state, "sie_embed": torch.ones(3, 1, 64)}, tmp_path / "w.pth")  # of TransReID: it changes the tokens
    with pytest.raises(
        CheckpointError, match=r"timm:test_vit cannot start from: .*left out: 1 \(sie_embed\).*MIN_SHARE"
    ):
        load_imagenet_weights(network, str(tmp_path / "w.pth"), network.name)
    load_imagenet_weights(network, str(tmp_path / "w.pth"), network.name, 0.9)
    assert torch.equal(network.network.norm.weight, state["norm.weight"])
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7), "pos_embed": torch.ones(1, 5, 7)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="none of its entries belongs to the network"):
        load_imagenet_weights(network, str(tmp_path / "w.pth"), network.name)


def test_a_converter_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("w12")

    monkeypatch.setattr(timm.models.vision_transformer, "checkpoint_filter_fn", fail)
    network = vit()
    state = drawn(network)
    fit = network.fit_weights({**state, "pos_embed": torch.ones(1, 17, 64)})
    assert (fit.missing, fit.interpolated) == (["pos_embed"], [])
    assert fit.left_out == ["pos_embed [1, 17, 64] in place of [1, 9, 64]"]


# ------------------------------------------------------------------------------------------------------------ downloads


def test_published_weights_are_taken_where_no_file_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """timm reads its own file, a stand-in for the download, for square images of another size."""
    published = drawn(vit((160, 160))) | {"head.weight": torch.ones(1000, 64), "head.bias": torch.zeros(1000)}
    entry: Any = timm.models.get_pretrained_cfg("test_vit")
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"state_dict": dict(published)} if pretrained else None
        return real(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", create)
    network = vit()
    with caplog.at_level(logging.INFO):
        load_imagenet_weights(network, "", network.name)
    assert (
        f"Loaded timm's weights test_vit.{entry.tag or 'r160_in1k'} into MODEL.NAME timm:test_vit." in caplog.messages
    )
    assert torch.equal(network.network.norm.weight, published["norm.weight"])
    expected = resample_abs_pos_embed(published["pos_embed"], [4, 2], [10, 10])
    torch.testing.assert_close(network.network.pos_embed, expected)
    torch.manual_seed(3)
    after = torch.rand(3)
    torch.manual_seed(3)
    network.download_weights()
    assert torch.equal(torch.rand(3), after)  # the heads that follow are drawn as after loading a file


def test_without_a_network_there_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    code = """if True:
        from modelling.backbones import NetworkOptions, get_backbone
        from modelling.backbones.imagenet import load_imagenet_weights
        size = {"image_size": (64, 32), "test_size": (64, 32)}
        load_imagenet_weights(get_backbone("timm:test_vit").build(NetworkOptions(**size)), "", "timm:test_vit")
    """
    done = run_code(code, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)})
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "utils.errors.UserError: MODEL.PRETRAIN_PATH is empty, so the weights of timm:test_vit are those that its "
        "package downloads, which failed ("
    )
    assert line.endswith(
        "Set MODEL.PRETRAIN_PATH to a file of weights from https://huggingface.co/timm, or MODEL.PRETRAINED False to "
        "start from random ones."
    )


def test_a_file_that_is_not_there_and_our_own_networks_without_one() -> None:
    with pytest.raises(
        MissingPathError, match="'no.pth', which is not a file. Expected ImageNet weights of timm:test_vit"
    ):
        load_imagenet_weights(vit(), "no.pth", "timm:test_vit")
    own = get_backbone("resnet18").build(NetworkOptions(1))
    with pytest.raises(MissingPathError, match="MODEL.PRETRAIN_PATH is '', which is not a file"):
        load_imagenet_weights(own, "", "resnet18")


def test_the_width_of_the_embedding_is_looked_at() -> None:
    for name, width in (("timm:test_vit", 64), ("timm:mobilenetv3_small_050", 1024)):
        cfg = small_config(**{"MODEL.NAME": name, "MODEL.BACKBONE_EMB_SIZE": width})
        baseline = Baseline(cfg)
        assert baseline(torch.rand(2, 3, 32, 16))[1].shape == (2, width)
        assert isinstance(baseline.base, TimmNetwork) and isinstance(baseline.base, PackageNetwork)
        cfg.MODEL.BACKBONE_EMB_SIZE = 2048
        with pytest.raises(
            UserError, match=f"{name} gives embeddings of size {width}: set MODEL.BACKBONE_EMB_SIZE {width}"
        ):
            Baseline(cfg)


@pytest.mark.parametrize("name", ["test_vit", STATIC, "test_convnext"])
def test_it_can_be_traced_and_exported(name: str) -> None:
    """As inference.export does; with one size, no position embedding is interpolated in the graph."""

    network = Baseline(small_config()).eval()
    network.base = build(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = network(IMAGES)
        traced = torch.jit.trace(network, IMAGES)
        exported = torch.export.export(network, (IMAGES,))
        assert "upsample" not in str(traced.inlined_graph)
        torch.testing.assert_close(traced(IMAGES), expected)
        torch.testing.assert_close(program_module(exported)(IMAGES), expected)


def test_a_layer_after_the_pooling_leaves_features_wide_under_autocast() -> None:
    """MobileNetV3 has a convolution there; losses compute in float32."""
    name = {"MODEL.NAME": "timm:mobilenetv3_small_050", "MODEL.BACKBONE_EMB_SIZE": 0}
    backbone = Baseline(small_config(**name))
    with torch.autocast("cpu", torch.bfloat16):
        _, features = backbone(torch.randn(2, 3, 32, 16))
    assert features.dtype == torch.float32
