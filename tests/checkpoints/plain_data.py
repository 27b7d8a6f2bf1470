"""What a checkpoint may hold once it is read or ready to be saved."""

from typing import Any

import torch


def assert_plain(obj: Any) -> None:
    assert type(obj) in {dict, list, tuple, str, int, float, bool, bytes, type(None), torch.Tensor}
    for part in [*obj, *obj.values()] if isinstance(obj, dict) else obj if isinstance(obj, list | tuple) else []:
        assert_plain(part)
