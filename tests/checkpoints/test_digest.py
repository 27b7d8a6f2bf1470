"""The digest by which weights are recognised."""

import torch
from torch import nn

from checkpoints.digest import digest_of


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_equal_weights_have_equal_digests_and_others_do_not():
    one = digest_of({"backbone": network()})
    assert len(one) == 64
    assert digest_of({"backbone": network().to(memory_format=torch.channels_last)}) == one
    assert digest_of({"backbone": network().double()}) == one  # as TRAINER.PRECISION 64-true holds it
    changed = network()
    changed[1].num_batches_tracked += 1
    others = [digest_of({"backbone": net}) for net in (network(1), changed)]
    assert len({one, digest_of({"bn": network()}), *others}) == 4
    half = network().to(torch.bfloat16)
    assert digest_of({"backbone": half}) == digest_of({"backbone": half.float()})


def test_equal_bytes_of_another_shape_or_type_are_other_weights():
    values = torch.zeros(4)

    class Weights(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("value", value)

    forms = (values, values.view(2, 2), values.view(torch.int32), values.view(torch.float16))
    assert len({digest_of({"": Weights(form)}) for form in forms}) == 4
