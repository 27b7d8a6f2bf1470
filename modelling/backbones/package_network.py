"""Networks that another package builds, without their classifiers: what timm's and torchvision's have in common."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from checkpoints.weights import Fit, fit_weights
from utils.errors import UnknownNameError, UserError


class PackageNetwork(nn.Module):
    """A network of another package that gives a feature map [B, D, h, w], tokens [B, N, D] or a vector [B, D].

    A subclass says in :meth:`features` how it is computed, and may have ``after_pooling``, which goes on from pooled
    features, [B, D] -> [B, D2]. Parameters that neither uses need no gradient: several processes would wait for one.

    Args:
        network: the module of the package, without classifier.
        name: MODEL.NAME, for messages.
    """

    #: Tokens before those that belong to positions; the first is the class token.
    num_prefix_tokens = 0
    #: Where its weights can be fetched by hand, as the end of "a file of weights".
    published = ""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network: Any = network
        self.name = name
        self.sizes: set[tuple[int, ...]] = set()  # that it has computed

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers in training, for drop path or dropout."""
        kinds = ("DropPath", "StochasticDepth", *(f"Dropout{kind}" for kind in ("", "1d", "2d", "3d")))
        drops = [module for module in self.modules() if type(module).__name__ in kinds]
        return any(getattr(module, "drop_prob", None) or getattr(module, "p", None) for module in drops)

    def features(self, images: Tensor) -> Any:
        """Images [B, 3, H, W] floating -> what the package's network gives, maps with the channel as axis 1."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] floating -> a map [B, D, h, w], tokens [B, N, D] or a vector [B, D]."""
        if torch.jit.is_tracing() or tuple(images.shape[-2:]) in self.sizes:
            return cast(Tensor, self.features(images))
        with explained(self.name, images.shape[-2:]):
            self.prepare_for(tuple(images.shape[-2:]))
            return cast(Tensor, self.features(images))

    def prepare_for(self, size: tuple[int, ...]) -> None:
        """Get ready for images of another height and width than those that it was built for."""

    # ------------------------------------------------------------------------------------------------------ checks

    def check(self, width: int, *sizes: Sequence[int]) -> Tensor:
        """Compute one image of each size, and see to it that each output has a known shape.

        Args:
            width: the channels of its output, as the package says; 0 if it does not say.
            sizes: heights and widths.

        Returns:
            The output for the first size, with its graph.

        Raises:
            UserError: the network cannot compute it, or gives something else.
        """
        was_training, outputs = self.training, []
        self.eval()
        for size in sizes:
            with explained(self.name, size), torch.enable_grad():
                outputs.append(self(sample(size)))
            self._check_shape(outputs[-1], size, width)
            self.sizes.add(tuple(size))
        self.train(was_training)
        return outputs[0]

    def _check_shape(self, found: Any, size: Sequence[int], width: int) -> None:
        shape = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        axis = {2: 1, 3: 2, 4: 1}.get(found.dim()) if isinstance(found, Tensor) else None
        if axis is None or (width and found.shape[axis] != width):
            wanted = width or "D"
            raise UserError(
                f"MODEL.NAME {self.name} turns an image [1, 3, {size[0]}, {size[1]}] into {shape}; expected a feature "
                f"map [1, {wanted}, h, w], tokens [1, N, {wanted}] or a vector [1, {wanted}]. This network cannot be "
                "used under this name; a function of your own can build it (MODEL.NAME package.module:function)."
            )

    def freeze_unused(self, *outputs: Tensor) -> None:
        """Let the parameters that none of these outputs depends on need no gradient."""
        used = {id(parameter) for output in outputs for parameter in parameters_of(output)}
        for parameter in self.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)

    # ----------------------------------------------------------------------------------------------------- weights

    def convert_weights(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights as other code names and shapes them -> those of this network, and what was interpolated."""
        return weights, []

    def foreign_names(self) -> Mapping[str, str]:
        """Names that :meth:`convert_weights` knows -> the network's own; they tell where in a file its weights are."""
        return {}

    def fit_weights(self, content: Mapping[str, Any]) -> Fit:
        """As :func:`checkpoints.weights.fit_weights`; the names are the package's, but for those of the weights."""
        fit = fit_weights(content, self.network.state_dict(), self.convert_weights, self.foreign_names())
        return replace(fit, weights={f"network.{name}": value for name, value in fit.weights.items()})

    def fetch_weights(self) -> tuple[Mapping[str, Tensor], str]:
        """The weights that the package publishes for this network, and a word for them; it may download them."""
        raise NotImplementedError

    def download_weights(self) -> str:
        """Load the weights that the package publishes for this network.

        Returns:
            Which ones they are.

        Raises:
            UserError: they cannot be had; the message says what else there is to do.
        """
        try:
            state, what = self.fetch_weights()
        except Exception as error:  # whatever the libraries below raise without a network
            text = " ".join(str(error).split()) or "no message"
            raise UserError(
                f"MODEL.PRETRAIN_PATH is empty, so the weights of {self.name} are those that its package downloads, "
                f"which failed ({type(error).__name__}: {text}). Set MODEL.PRETRAIN_PATH to a file of weights"
                f"{self.published}, or MODEL.PRETRAINED False to start from random ones."
            ) from error
        self.network.load_state_dict({name: state[name] for name in self.network.state_dict()})
        return what


def parameters_of(output: Tensor) -> Iterator[Tensor]:
    """The parameters that a tensor depends on, from its graph."""
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)


def sample(size: Sequence[int], batch: int = 1) -> Tensor:
    """Images [batch, 3, H, W] that are the same each time and not the same everywhere."""
    return torch.linspace(-2, 2, batch * 3 * size[0] * size[1]).sin().view(batch, 3, *size)


@contextmanager
def explained(name: str, size: Sequence[int]) -> Iterator[None]:
    """Turn what a package raises while it builds or runs a network into one line.

    Raises:
        UserError: in place of what it was.
    """
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        text = " ".join(str(error).split()) or "no message"
        raise UserError(
            f"MODEL.NAME {name} cannot compute images of {_size(size)} pixels ({type(error).__name__}: {text}). Choose "
            "other sizes (INPUT.SIZE_TRAIN, INPUT.SIZE_TEST), or another network."
        ) from error


def refuse_unknown(name: str, package: str, version: str, known: Callable[[], Sequence[str]]) -> UnknownNameError:
    """The error for a name that a package does not know; it lists the names that look alike.

    Args:
        name: the name, without the prefix.
        package: the package, which is also the prefix.
        version: its version.
        known: gives the names that it knows.
    """
    names = list(known())
    close = difflib.get_close_matches(name.partition(".")[0], names, n=5, cutoff=0.5) or names[:5]
    return UnknownNameError(
        f"MODEL.NAME is '{package}:{name}', but {package} {version} has no network {name!r}; of its {len(names)}, "
        f"these come closest: {', '.join(close)}."
    )


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
