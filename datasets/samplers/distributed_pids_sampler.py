"""A door: the original's file of the sampler, which is in :mod:`datasets.samplers.random_identity`."""

from datasets.samplers.random_identity import RandomIdentitySampler

__all__ = ["RandomIdentitySampler"]
