"""The networks of the package timm: MODEL.NAME timm:<name>. The package is imported when such a name is used."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelling.backbones.options import NetworkOptions
from modelling.backbones.package_network import PackageNetwork, explained, parameters_of, refuse_unknown
from utils.errors import UnknownNameError, UserError
from utils.optional import require

EXTRA = "backbones"  # what installs timm
POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"


class OverlappingPatches(nn.Module):
    """Patches that overlap, as TransReID (He et al., ICCV 2021) cuts them: timm's ``embed_layer`` with a stride.

    Parameters and names are those of timm's PatchEmbed, and so is what its transformers ask of it.

    Args:
        stride: pixels between two patches.
        img_size: height and width of the images that position embeddings are made for.
        patch_size: side of a patch in pixels, or both sides.
        in_chans: channels of an image.
        embed_dim: width of a token (D).
        norm_layer: builds a norm for the tokens; None has none.
        flatten: give tokens rather than a map.
        options: ``bias``, ``output_fmt`` ("NHWC" gives a map [B, h, w, D]) and what else timm passes.
    """

    def __init__(
        self,
        stride: int,
        img_size: Any,
        patch_size: Any = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Any = None,
        flatten: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.patch_size = _pair(patch_size)
        if not 0 < stride <= min(self.patch_size):
            raise UserError(
                f"MODEL.PATCH_STRIDE is {stride}; expected 1 to {min(self.patch_size)}, the size of a patch, or 0 for "
                "patches side by side."
            )
        self.stride = stride
        self.img_size = _pair(img_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = math.prod(self.grid_size)
        self.output_format = options.get("output_fmt") or ("tokens" if flatten else "NCHW")
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, stride, bias=options.get("bias", True))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """How many pixels there are between two tokens."""
        return self.stride if as_scalar else (self.stride, self.stride)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The rows and columns of patches in an image of this height and width."""
        (height, width), (rows, columns) = img_size, self.patch_size
        return (height - rows) // self.stride + 1, (width - columns) // self.stride + 1

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> tokens [B, h * w, D], or a map [B, h, w, D]."""
        patches = self.proj(images)  # [B, D, h, w]
        if self.output_format == "NCHW":
            return self.norm(patches)
        tokens = patches.permute(0, 2, 3, 1)
        return self.norm(tokens if self.output_format == "NHWC" else tokens.flatten(1, 2))


class TimmHead:
    """What a network of timm does to pooled features before its classifier, such as a norm: [B, D] -> [B, D2].

    Args:
        network: timm's network.
        dimensions: of what its features are: 4 for maps, 3 for tokens.
        prefix_tokens: tokens before those of positions.
        is_channels_last: whether timm has the channels of its maps as the last axis.
    """

    def __init__(self, network: Any, dimensions: int, prefix_tokens: int, is_channels_last: bool) -> None:
        self.network = network
        self.dimensions = dimensions
        self.prefix_tokens = prefix_tokens
        self.is_channels_last = is_channels_last

    def __call__(self, pooled: Tensor) -> Tensor:
        """The head's pooling has one position to pool, and so changes nothing."""
        if self.dimensions == 4:
            return self.of_features(pooled[:, :, None, None])
        return self.of_features(pooled[:, None].expand(-1, self.prefix_tokens + 1, -1))

    def of_features(self, features: Tensor) -> Tensor:
        """A map [B, D, h, w] or tokens [B, N, D] -> [B, D2], by timm's own pooling."""
        if self.is_channels_last and features.dim() == 4:
            features = features.permute(0, 2, 3, 1)
        found: Tensor = self.network.forward_head(features, pre_logits=True)
        return found.flatten(1)


class TimmNetwork(PackageNetwork):
    """A network of timm up to what its classifier starts from, without pooling.

    Args:
        name: its name in timm, such as vit_small_patch16_224 or convnext_tiny.fb_in1k.
        options: image sizes, drop path, stride of patches.

    Raises:
        UserError: it does not offer what the options ask for, cannot compute images of these sizes, or gives no map,
            tokens or vectors.
    """

    published = " from https://huggingface.co/timm"

    def __init__(self, name: str, options: NetworkOptions) -> None:
        with explained(f"timm:{name}", options.image_size):
            network, given = _create(name, options)
        super().__init__(network, f"timm:{name}")
        self.timm_name = name
        self.created_with, self.options = given, options
        self.num_prefix_tokens = _prefix_tokens(network)
        self.is_channels_last = getattr(network, "output_fmt", "") == "NHWC"
        found = self.check(getattr(network, "num_features", 0), options.image_size, options.test_size)
        if found.dim() == 3 and found.shape[1] <= self.num_prefix_tokens:  # class tokens alone
            self.num_prefix_tokens = 0
        self.freeze_unused(found, *self._find_head(found))
        self._recomputes = False

    def features(self, images: Tensor) -> Any:
        """Images [B, 3, H, W] -> what timm's forward_features gives, a map as [B, D, h, w]."""
        found = self.network.forward_features(images)
        return found.permute(0, 3, 1, 2) if self.is_channels_last and found.dim() == 4 else found

    def _find_head(self, found: Tensor) -> list[Tensor]:
        """Set ``after_pooling`` to what timm has between pooling and classifier, if that works on pooled features.

        Args:
            found: what the network gave, with its graph.

        Returns:
            What comes out of it, with its graph; nothing if there is no such part.
        """
        used = {id(parameter) for parameter in parameters_of(found)}
        if found.dim() == 2 or all(id(p) in used for p in self.network.parameters() if p.requires_grad):
            return []
        head = TimmHead(self.network, found.dim(), self.num_prefix_tokens, self.is_channels_last)
        tokens = found.flatten(2).mT if found.dim() == 4 else found
        ways = (tokens[:, self.num_prefix_tokens :].mean(1), tokens[:, 0])
        was_training = self.training
        self.eval()
        with torch.enable_grad():
            whole = head.of_features(found)
            outputs = [head(pooled) for pooled in ways]
        self.train(was_training)
        same = [out for out in outputs if out.shape == whole.shape and torch.allclose(out, whole, rtol=1e-3, atol=1e-4)]
        if same:
            self.after_pooling = head
        return same[:1]

    def prepare_for(self, size: tuple[int, ...]) -> None:
        """Interpolate position embeddings from now on, where this network was made for one size alone."""
        options = self.options
        if self.training or torch.is_grad_enabled() or tuple(options.test_size) != tuple(options.image_size):
            return
        self.options = replace(options, test_size=(size[0], size[1]))
        network, self.created_with = _create(self.timm_name, self.options)
        network.load_state_dict(self.network.state_dict())
        own = next(self.network.parameters())
        self.network = network.requires_grad_(False).to(own.device, own.dtype).eval()

    # ------------------------------------------------------------------------------------------ what training asks

    @property
    def grad_checkpoint(self) -> bool:
        """Whether each block is computed again in the backward pass instead of being stored; may be set."""
        return self._recomputes

    @grad_checkpoint.setter
    def grad_checkpoint(self, wanted: bool) -> None:
        if wanted and any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise UserError(
                f"MODEL.GRAD_CHECKPOINT is True, but {self.name} has batch norm, whose running statistics timm would "
                "update twice in each step: set MODEL.GRAD_CHECKPOINT False."
            )
        if wanted != self._recomputes:
            try:
                self.network.set_grad_checkpointing(wanted)
            except (AssertionError, AttributeError) as error:
                raise UserError(
                    f"MODEL.GRAD_CHECKPOINT is True, which timm does not offer for {self.name}: set "
                    "MODEL.GRAD_CHECKPOINT False."
                ) from error
            self._recomputes = wanted

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm leaves out of weight decay: tokens, position embeddings and the like."""
        names: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {f"network.{name}" for name, _ in self.network.named_parameters() if name in names}

    # ----------------------------------------------------------------------------------------------------- weights

    def convert_weights(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights as timm, DINO, iBOT or OpenAI's CLIP name them -> names and shapes of this network.

        Args:
            weights: tensors by name, without any prefix.

        Returns:
            The weights, and what was interpolated.
        """
        is_clip = "class_embedding" in weights
        prefix = "visual." if is_clip else ""
        content = {prefix + name: value for name, value in weights.items()}
        positions, where = self._resample_positions(content, is_clip)
        try:
            converted = self._filter(content)
        except Exception:  # timm's converters meet whatever file there is; what stays as it is will be said not to fit
            return weights, []
        changed = [
            f"{name} {list(weights[name].shape)} to {list(value.shape)}"
            for name, value in converted.items()
            if name in weights and weights[name].shape != value.shape and name != POSITIONS
        ]
        if positions is not None and POSITIONS in converted:
            converted[POSITIONS] = positions
            changed.append(where)
        return converted, changed

    def _filter(self, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """What timm does to weights of this family before it loads them."""
        convert = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        return dict(content) if convert is None else dict(convert(dict(content), self.network))

    def _resample_positions(self, content: dict[str, Tensor], is_clip: bool) -> tuple[Tensor | None, str]:
        """Interpolate position embeddings of another grid, in ``content``, too; None if there is nothing to do.

        timm's own converters take a grid in a file for a square, or for that of the published weights.
        """
        own = getattr(self.network, POSITIONS, None)
        grid = getattr(getattr(self.network, "patch_embed", None), "grid_size", None)
        key = "visual.positional_embedding" if is_clip else POSITIONS
        found = content.get(key)
        if own is None or own.dim() != 3 or grid is None or found is None:
            return None, ""
        rows = found.reshape(1, -1, found.shape[-1])
        own_prefix = own.shape[1] - math.prod(grid)
        distilled = int("dist_token" in content) - int(getattr(self.network, "dist_token", None) is not None)
        if distilled < 0:  # the row of a token that the file does not have
            del content[key]
            return None, ""
        if distilled:
            rows = torch.cat([rows[:, :1], rows[:, 2:]], 1)
        prefix = 1 if is_clip or "register_tokens" in content else own_prefix
        count = rows.shape[1] - prefix
        if count <= 0 or (count == math.prod(grid) and not distilled):
            return None, ""
        old = guess_grid(count, grid)
        layers = require("timm.layers", EXTRA, self.name)
        if old != tuple(grid):
            rows = layers.resample_abs_pos_embed(rows, list(grid), list(old), num_prefix_tokens=prefix)
        content[key] = rows.reshape(*found.shape[:-2], *rows.shape[1:])
        text = f"{POSITIONS} {old[0]} x {old[1]} to {grid[0]} x {grid[1]}"
        return rows[:, rows.shape[1] - own.shape[1] :], text

    def foreign_names(self) -> dict[str, str]:
        """Names of OpenAI's CLIP, some of them: enough to find its image tower in a file."""
        names = {}
        for name in self.network.state_dict():
            if match := re.fullmatch(r"blocks\.(\d+)\.norm([12])\.(\w+)", name):
                names["transformer.resblocks.{}.ln_{}.{}".format(*match.groups())] = name
        return names | ({"conv1.weight": PATCHES} if PATCHES in self.network.state_dict() else {})

    def fetch_weights(self) -> tuple[Mapping[str, Tensor], str]:
        """The weights that timm publishes under this name, for the image size of this network; may download them."""
        timm = require("timm", EXTRA, self.name)
        with torch.random.fork_rng(devices=[]):  # the same draws follow as after loading a file
            network = timm.create_model(self.timm_name, pretrained=True, num_classes=0, **self.created_with)
        published = ".".join(filter(None, (network.pretrained_cfg[key] for key in ("architecture", "tag"))))
        return network.state_dict(), f"timm's weights {published}"


def find_network(name: str) -> Callable[[NetworkOptions], TimmNetwork]:
    """What builds the network that timm has under a name.

    Raises:
        UserError: timm is not installed; the message names the extra that installs it.
        UnknownNameError: timm has no such network; the message lists those whose names come closest.
    """
    timm = require("timm", EXTRA, f"MODEL.NAME timm:{name}")
    if not timm.is_model(name):
        raise refuse_unknown(name, "timm", timm.__version__, timm.list_models)
    architecture, _, tag = name.partition(".")
    known = timm.list_models(f"{architecture}.*", pretrained=True) if tag else [name]
    if name not in known:
        raise UnknownNameError(
            f"MODEL.NAME is 'timm:{name}', but timm {timm.__version__} has no weights {tag!r} of {architecture}; it "
            f"has {', '.join(known) or 'none'}."
        )
    return partial(TimmNetwork, name)


def guess_grid(count: int, like: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the patches that some position embeddings were made for.

    Args:
        count: how many there are, 1 or more.
        like: rows and columns of the grid that they are wanted for.

    Returns:
        A square, if there is one of so many; else the rectangle closest to the form of the grid, and of two equally
        close ones the higher.
    """
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    grids = [(rows, count // rows) for rows in range(count, 0, -1) if count % rows == 0]
    return min(grids, key=lambda grid: abs(math.log(grid[0] * like[1] / (grid[1] * like[0]))))


def _create(name: str, options: NetworkOptions) -> tuple[Any, dict[str, Any]]:
    """A network of timm, and the arguments that it took of those that the options are worth."""
    timm = require("timm", EXTRA, f"MODEL.NAME timm:{name}")
    given: dict[str, Any] = {"img_size": tuple(options.image_size), "drop_path_rate": options.drop_path}
    # Of vision transformers, and of Swin. For one size, positions are not interpolated in each step, nor in an export.
    given["dynamic_img_size"] = tuple(options.test_size) != tuple(options.image_size)
    if given["dynamic_img_size"]:
        given["strict_img_size"] = False
    if options.patch_stride:
        given["embed_layer"] = partial(OverlappingPatches, options.patch_stride)
    while True:
        try:
            network = timm.create_model(name, num_classes=0, **given)
            if getattr(network, "attn_pool", None) is not None:  # of SigLIP: a pooling of its own
                network.reset_classifier(0, "avg")
            return network, given
        except TypeError as error:
            refused = [key for key in given if f"'{key}'" in str(error)]
            if "unexpected keyword argument" not in str(error) or not refused:
                raise
        for key in refused:
            _do_without(f"timm:{name}", key, options)
            del given[key]


def _do_without(name: str, argument: str, options: NetworkOptions) -> None:
    """Raise if a network does not know an argument, and the user asked for what it stands for."""
    if argument == "drop_path_rate" and options.drop_path:
        raise UserError(f"MODEL.DROP_PATH is {options.drop_path}, but {name} has no drop path: set MODEL.DROP_PATH 0.")
    if argument == "embed_layer":
        raise UserError(
            f"MODEL.PATCH_STRIDE is {options.patch_stride}, but {name} has no patches that could overlap: set "
            "MODEL.PATCH_STRIDE 0."
        )


def _prefix_tokens(network: Any) -> int:
    told = getattr(network, "num_prefix_tokens", None)
    return int(getattr(network, "cls_token", None) is not None) if told is None else int(told)


def _pair(sides: Any) -> tuple[int, int]:
    rows, columns = (sides, sides) if isinstance(sides, int) else sides
    return int(rows), int(columns)
