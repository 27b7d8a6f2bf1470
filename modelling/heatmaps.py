"""Where a network looks: maps of the places in two images that make them similar, drawn over the images."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from datasets.transforms.build import ReidTransforms
from evaluation.ranked_images import Ranking
from evaluation.retrieval import RetrievalSet
from modelling.backbones.timm_networks import guess_grid
from modelling.modes import in_eval_mode
from modelling.pooling import TOKEN
from utils.distances import normalize
from utils.files import write_bytes
from utils.image import pil_loader

Pixels = NDArray[np.uint8]

# Dark blue over green to dark red: the colours of Turbo (Mikhailov, 2019) at eight points.
_COLOURS = (
    *((48, 18, 59), (70, 118, 238), (27, 208, 213), (98, 252, 108)),
    *((210, 233, 53), (254, 155, 45), (219, 58, 7), (122, 4, 3)),
)
_GAP = 4  # pixels between two images
_STEM = 50  # characters of a file's name that the name of its map has, which must not become too long


def find_map(model: Any, images: Tensor, targets: Tensor) -> Tensor | None:
    """How much each place of an image has to do with its embedding, on the grid of the network's last output.

    Of a feature map F [D, h, w], each place gets its share of the cosine similarity s between the embedding and a
    target: its activations times the gradient of s before them (Selvaraju et al., ICCV 2017, by place as Draelos and
    Carin, 2020), with the length of the embedding held fixed. With average pooling that is what the head makes of F at
    that place (class activation mapping, Zhou et al., CVPR 2016; for similarities Stylianou et al., WACV 2019). What no
    place has a part in, such as a bias, is spread evenly, so that the mean of a map is s, for any pooling and head.

    Of tokens of a transformer, it is how much attention flows from each place into the embedding through all blocks:
    attention roll-out (Abnar and Zuidema, ACL 2020), which does not look at the target. It sums to 1, less what the
    tokens without a place get.

    The model is left as it was: modes, hooks, weights and gradients.

    Args:
        model: a model of this project.
        images: [B, 3, H, W] floating.
        targets: [B, D] embeddings to be similar to, of any length.

    Returns:
        [B, h, w] float32; None if the network gives neither a map nor tokens with attention between all of them.
    """
    base = model.backbone.base
    with ExitStack() as stack:
        stack.enter_context(in_eval_mode(model))
        stack.enter_context(torch.inference_mode(False))  # a Trainer's tests run in that mode, which knows no gradients
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_uncompiled(base))
        matrices = stack.enter_context(_attention(base))
        outputs = stack.enter_context(_outputs(base))
        embeddings = model.embed(images.clone())
        if not outputs or not embeddings.requires_grad:  # a model of the user's own may embed in another way
            return None
        if outputs[-1].dim() == 4:
            return _shares(outputs[-1], embeddings, targets.clone())
        return _attended(model.backbone, outputs[-1], matrices, images.shape[-2:])


def _shares(features: Tensor, embeddings: Tensor, targets: Tensor) -> Tensor:
    """The parts that the places of [B, D, h, w] have in the similarity to targets, [B, h, w]."""
    lengths = embeddings.detach().float().norm(dim=1, keepdim=True) + 1e-12
    similarity = (embeddings.float() / lengths * normalize(targets.float())).sum(1)
    (gradient,) = torch.autograd.grad(similarity.sum(), features)
    shares = (features * gradient).detach().float().sum(1)
    rest = similarity.detach() - shares.sum((1, 2))
    return shares * shares[0].numel() + rest[:, None, None]


def roll_out(matrices: Sequence[Tensor]) -> Tensor:
    """Attention through all blocks: the product of (A + I) / 2, the last block first (Abnar and Zuidema, ACL 2020).

    Args:
        matrices: attention [B, heads, N, N] of each block, rows sum to 1; A is the mean over the heads.

    Returns:
        [B, N, N] float32; rows sum to 1.
    """
    rolled = torch.eye(matrices[0].shape[-1], device=matrices[0].device)
    for matrix in matrices:
        mean = matrix.float().mean(1)
        mixed = mean + torch.eye(mean.shape[-1], device=mean.device)
        rolled = mixed / mixed.sum(-1, keepdim=True) @ rolled
    return rolled


def _attended(backbone: Any, tokens: Tensor, matrices: Sequence[Tensor], size: Sequence[int]) -> Tensor | None:
    if tokens.dim() != 3 or not matrices or any(matrix.shape[-2:] != (tokens.shape[1],) * 2 for matrix in matrices):
        return None
    prefix = getattr(backbone.base, "num_prefix_tokens", 0)
    rolled = roll_out(matrices)
    places = rolled[:, 0] if backbone.pooling == TOKEN else rolled[:, prefix:].mean(1)
    places = places[:, prefix:]
    return places.unflatten(1, _grid(backbone.base, places.shape[1], size))


def _grid(base: Any, count: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image."""
    patches: Any = getattr(getattr(base, "network", base), "patch_embed", None)
    grids = [patches.dynamic_feat_size(tuple(size))] if hasattr(patches, "dynamic_feat_size") else []
    grids.append(getattr(patches, "grid_size", None) or ())
    known = [(grid[0], grid[1]) for grid in grids if len(grid) == 2 and prod(grid) == count]
    return known[0] if known else guess_grid(count, size)


@contextmanager
def _outputs(base: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a network returns, cut off from how it was computed, which so needs no memory for gradients."""
    found: list[Tensor] = []

    def begin(*_: Any) -> None:
        torch.set_grad_enabled(False)

    def end(_: Any, __: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        found.append(output.detach().clone().requires_grad_())
        return found[-1]

    hooks = (base.register_forward_pre_hook(begin), base.register_forward_hook(end))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attention(base: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention of timm's blocks, which compute it one step at a time for as long."""
    found: list[Tensor] = []
    blocks: list[Any] = [block for block in base.modules() if hasattr(block, "fused_attn")]
    blocks = [block for block in blocks if isinstance(getattr(block, "attn_drop", None), nn.Module)]
    were_fused = [block.fused_attn for block in blocks]
    hooks = [block.attn_drop.register_forward_hook(lambda *args: found.append(args[-1].detach())) for block in blocks]
    for block in blocks:
        block.fused_attn = False
    try:
        yield found
    finally:
        for block, was_fused, hook in zip(blocks, were_fused, hooks, strict=True):
            block.fused_attn = was_fused
            hook.remove()


@contextmanager
def _uncompiled(base: Any) -> Iterator[None]:
    """Without MODEL.COMPILE for a while: a compiled network does not ask what hooks there are."""
    compiled = base._compiled_call_impl
    base._compiled_call_impl = None
    try:
        yield
    finally:
        base._compiled_call_impl = compiled


def draw_over(pixels: Pixels, values: NDArray[np.float32]) -> Pixels:
    """Colours over an image: dark blue where a map is lowest, over green to red where it is highest.

    Args:
        pixels: [H, W, 3] uint8.
        values: [h, w] float32, finite; equal values are all lowest.

    Returns:
        [H, W, 3] uint8.
    """
    span = float(values.max() - values.min())
    level = (values - values.min()) / (span if span > 0 else 1.0)
    size = (pixels.shape[1], pixels.shape[0])
    level = np.asarray(Image.fromarray(level.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    points = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(level, points, channel) for channel in zip(*_COLOURS, strict=True)], -1)
    return np.rint((pixels + colours) / 2).astype(np.uint8)


def write_heatmaps(
    model: Any, retrieval: RetrievalSet, rankings: Sequence[Ranking], folder: str | PathLike[str]
) -> dict[int, Path]:
    """Draw for each query, and for its first result, the places that make one similar to the other.

    Each file holds the query, the query with its map, the result and the result with its map. With TEST.FLIP the maps
    are of the images as they are, not mirrored.

    Args:
        model: the model that computed the embeddings.
        retrieval: a set with paths.
        rankings: of the queries to draw; the first result of a centroid stands for it.
        folder: where to write NUMBER_NAME.png, by the query's position and file.

    Returns:
        Index of the query -> file; empty if the network has neither a map nor attention, see :func:`find_map`.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
    """
    assert retrieval.q_paths is not None and retrieval.g_paths is not None
    hparams = model.hparams
    resize, normalise = ReidTransforms(hparams).build_transforms(is_train=False).transforms
    weight = next(model.backbone.parameters())
    written = {}
    for ranking in rankings:
        query, result = ranking.query, int(ranking.images[0])
        cells = []
        for path, target in (
            (retrieval.q_paths[query], retrieval.gallery[result]),
            (retrieval.g_paths[result], retrieval.query[query]),
        ):
            planes = resize(pil_loader(path, hparams.INPUT.EXIF_ORIENTATION, resize.least))
            found = find_map(model, normalise(planes)[None].to(weight), target[None].to(weight))
            if found is None:
                return {}
            pixels = planes.permute(1, 2, 0).numpy()
            cells += [pixels, draw_over(pixels, found[0].cpu().numpy())]
        encoded = io.BytesIO()
        _beside(cells).save(encoded, "PNG")
        name = f"{query:05d}_{Path(retrieval.q_paths[query]).stem[:_STEM]}.png"
        written[query] = write_bytes(Path(folder) / name, encoded.getvalue())
    return written


def _beside(cells: Sequence[Pixels]) -> Image.Image:
    gap = np.full((cells[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return Image.fromarray(np.concatenate([part for cell in cells for part in (cell, gap)][:-1], 1))
