"""The networks of torchvision: MODEL.NAME torchvision:<name>."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.ops import StochasticDepth

from modelling.backbones.options import NetworkOptions
from modelling.backbones.package_network import PackageNetwork, refuse_unknown
from utils.errors import UserError

# What leads from an image to the feature map, by the first module that tells the family.
_WAYS: dict[str, tuple[str, ...]] = {
    "layer4": ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "trunk_output": ("stem", "trunk_output"),
    "features": ("features", "norm", "permute"),  # the last two are Swin's
}
_HEADS = ("fc", "classifier", "head", "avgpool")


class ConvNeXtNorm:
    """The norm between ConvNeXt's pooling and its classifier, [B, D] -> [B, D]."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, pooled: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        normed: Tensor = self.network.classifier(pooled[:, :, None, None])
        return normed.flatten(1)


class TorchvisionNetwork(PackageNetwork):
    """A network of torchvision up to its last feature map.

    Args:
        name: its name in torchvision, such as convnext_tiny or efficientnet_v2_s.
        options: image sizes and drop path.

    Raises:
        UserError: it has no drop path but is to have one, cannot compute images of these sizes, or is of another form
            than those that this class knows.
    """

    def __init__(self, name: str, options: NetworkOptions) -> None:
        network = get_model(name, weights=None)
        way = next((names for first, names in _WAYS.items() if hasattr(network, first)), ())
        if not way:
            raise UserError(
                f"MODEL.NAME torchvision:{name} has no feature map that is known here; expected a ResNet, RegNet, "
                "ConvNeXt, MobileNet, EfficientNet, DenseNet, Swin, or a network like these. For transformers, see "
                "timm:<name>."
            )
        _require_options(name, network, options)
        super().__init__(network, f"torchvision:{name}")
        self.torchvision_name = name
        self.way = [module for module in way if hasattr(network, module)]
        # DenseNet applies its last ReLU, and ConvNeXt its last norm, outside of its features.
        self.ends_in_relu = isinstance(network, torchvision.models.DenseNet)
        norm = network.classifier[:1] if isinstance(network, torchvision.models.ConvNeXt) else None
        for head in _HEADS:
            if hasattr(network, head):
                delattr(network, head)
        self.check(0, options.image_size, options.test_size)
        if norm is not None:
            network.classifier = norm
            self.after_pooling = ConvNeXtNorm(network)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] floating -> feature map [B, D, h, w]."""
        found = images
        for name in self.way:
            found = getattr(self.network, name)(found)
        return found.relu() if self.ends_in_relu else found

    def fetch_weights(self) -> tuple[Mapping[str, Tensor], str]:
        """The default weights of torchvision, which may have to be downloaded."""
        weights: Any = get_model_weights(self.torchvision_name).DEFAULT
        return weights.get_state_dict(progress=False), f"torchvision's weights {weights}"


def find_network(name: str) -> Callable[[NetworkOptions], TorchvisionNetwork]:
    """What builds the network that torchvision has under a name.

    Raises:
        UnknownNameError: torchvision has no such network; the message lists those whose names come closest.
    """
    if name not in list_models(module=torchvision.models):
        known = partial(list_models, module=torchvision.models)
        raise refuse_unknown(name, "torchvision", torchvision.__version__, known)
    return partial(TorchvisionNetwork, name)


def _require_options(name: str, network: nn.Module, options: NetworkOptions) -> None:
    """Set the rates of drop path, which rise with depth from 0; raise if an option means nothing to a network."""
    if options.patch_stride:
        raise UserError(
            f"MODEL.PATCH_STRIDE is {options.patch_stride}, but torchvision:{name} has no patches that could overlap: "
            "set MODEL.PATCH_STRIDE 0."
        )
    drops = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    if options.drop_path and not drops:
        raise UserError(
            f"MODEL.DROP_PATH is {options.drop_path}, but torchvision:{name} has no drop path: set MODEL.DROP_PATH 0."
        )
    for depth, module in enumerate(drops):
        module.p = options.drop_path * depth / max(1, len(drops) - 1)
