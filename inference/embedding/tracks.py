"""Embeddings of tracks: several crops of one person, one embedding."""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inference.embedding.inputs import as_sequence
from utils.aggregation import aggregate_groups
from utils.errors import UserError

Track = TypeVar("Track", bound=Hashable)


def embed_tracks(
    embedder: Any, tracks: Mapping[Track, Any], aggregation: str = "mean", batch_size: int | None = None
) -> tuple[NDArray[np.float32], list[Track]]:
    """What ``Embedder.embed_tracks`` returns; ``embedder`` is the Embedder."""
    aggregate_groups(np.empty((0, 1)), np.empty(0, np.int64), 0, aggregation)  # a wrong name is an error at once
    crops: list[Any] = []
    sizes: list[int] = []
    for track, images in tracks.items():
        sequence = as_sequence(images)
        if not len(sequence):
            raise UserError(f"the track {track!r} has no crops; leave it out until it has one.")
        crops += sequence
        sizes.append(len(sequence))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    names = list(tracks)
    if any(isinstance(crop, Tensor) and crop.is_floating_point() for crop in crops):
        rows = embedder.embed(crops, batch_size)
    else:
        rows = np.empty((len(crops), embedder.dimension), np.float32)
        for batch in embedder.embed_batches(crops, "skip", batch_size):
            for position, error in batch.errors.items():
                track = names[groups[position]]
                first = int(np.searchsorted(groups, groups[position]))
                reason = error.__cause__ if isinstance(error.__cause__, UserError) else error  # without its position
                raise UserError(f"the track {track!r}, crop {position - first} (from 0): {reason}") from error
            rows[batch.start : batch.start + len(batch.kept)] = batch.embeddings
    return aggregate_groups(rows, groups, len(sizes), aggregation).numpy(), names
