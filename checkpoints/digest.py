"""The digest of weights, by which embeddings, galleries and metrics of one network are recognised."""

import hashlib
from collections.abc import Mapping

import torch


def digest_of(modules: Mapping[str, torch.nn.Module]) -> str:
    """SHA-256 of the weights of some modules, as 32-bit numbers; equal weights have equal digests.

    It depends neither on the file that they came from nor on the precision of the training.
    """
    digest = hashlib.sha256()
    for owner, module in modules.items():
        for name, value in module.state_dict().items():
            value = value.float() if value.is_floating_point() else value
            digest.update(f"{owner}.{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
