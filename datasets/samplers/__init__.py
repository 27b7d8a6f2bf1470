"""Samplers by name."""

from collections.abc import Mapping, Sized

from datasets.samplers.evaluation_shard import EvaluationShard
from datasets.samplers.random_identity import RandomIdentitySampler
from utils.errors import UnknownNameError

__all__ = ["EvaluationShard", "RandomIdentitySampler", "get_names", "get_sampler"]

_SAMPLERS = {"random_identity": RandomIdentitySampler}


def get_names() -> list[str]:
    """The names that :func:`get_sampler` knows.

    Example:
        >>> get_names()
        ['random_identity']
    """
    return sorted(_SAMPLERS)


def get_sampler(
    name: str,
    data_source: Mapping[int, Sized],
    batch_size: int,
    num_instances: int,
    world_size: int = 1,
    rank: int = 0,
    seed: int = 0,
) -> RandomIdentitySampler:
    """Build the sampler called ``name``. Other Args as for :class:`RandomIdentitySampler`.

    Raises:
        UnknownNameError: no sampler of that name (a KeyError and a ValueError).

    Example:
        >>> images = {7: ["a.jpg", "b.jpg"], 8: ["c.jpg", "d.jpg"]}
        >>> sampler = get_sampler("random_identity", images, batch_size=2, num_instances=2)
        >>> sorted(sampler)
        [7, 8]
    """
    if name not in _SAMPLERS:
        raise UnknownNameError(f"DATALOADER.SAMPLER is {name!r}; valid names: {', '.join(get_names())}.")
    return _SAMPLERS[name](data_source, batch_size, num_instances, world_size, rank, seed)
