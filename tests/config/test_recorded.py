"""A configuration beside the one that a checkpoint records: every key is compared, or is known not to be."""

import pytest

from checkpoints.plain import to_plain
from config import DEFAULT_VALUES, cfg
from config.flatten import flatten_config
from config.load import load_config
from config.recorded import COMPARED, NETWORK, NOT_COMPARED, SCALING, adopt, differences


def other_value(key):
    """A value that the key does not have by default."""
    value = DEFAULT_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other" if isinstance(value, str) else type(value)([*value, 7])


def recording(*keys):
    """The hyper-parameters of a checkpoint that differs from the defaults in these keys."""
    stored = {"num_classes": 5, **to_plain(cfg)}
    for key in keys:
        section, _, name = key.rpartition(".")
        (stored[section] if section else stored)[name] = other_value(key)
    return stored


@pytest.mark.parametrize("key", DEFAULT_VALUES)
def test_a_difference_in_any_key_is_one_line_unless_there_is_a_reason(key):
    there, here = (list(v) if isinstance(v, tuple) else v for v in (other_value(key), DEFAULT_VALUES[key]))
    lines = differences(load_config(), recording(key))
    if key in NOT_COMPARED:
        assert lines == []
    else:
        assert lines == [f"{key}: {there!r} in the checkpoint, {here!r} here by default, which is used."]


def test_keys_without_a_line_have_a_reason():
    assert sorted([*COMPARED, *NOT_COMPARED]) == sorted(DEFAULT_VALUES)
    assert all(NOT_COMPARED.values())


def test_the_value_that_is_used_is_named():
    config = load_config("", ["SOLVER.BASE_LR", "0.5", "MODEL.NAME", "resnet34"])
    stored = recording() | {"SOLVER": {"BASE_LR": 0.25}, "MODEL": {"NAME": "resnet18", "LAST_STRIDE": 2}}
    assert differences(config, stored, from_checkpoint=NETWORK) == [
        "MODEL.NAME: 'resnet18' in the checkpoint, which is used, 'resnet34' here.",
        "MODEL.LAST_STRIDE: 2 in the checkpoint, which is used, 1 here by default.",
        "SOLVER.BASE_LR: 0.25 in the checkpoint, 0.5 here, which is used.",
    ]
    assert differences(config, stored, ("MODEL.LAST_STRIDE",)) == [
        "MODEL.LAST_STRIDE: 2 in the checkpoint, 1 here by default, which is used."
    ]


def test_a_recording_that_lacks_keys_or_has_more_is_no_difference():
    assert differences(load_config(), {}) == []
    assert differences(load_config(), {"MODEL": {}, "SOLVER": None, "data_seed": 3}) == []
    assert differences(load_config(), recording()) == []


def test_only_image_size_scaling_and_network_are_taken_and_only_where_nobody_set_them():
    stored = recording(*DEFAULT_VALUES)
    taken = flatten_config(adopt(load_config(), stored))
    assert taken == DEFAULT_VALUES | {key: other_value(key) for key in (*SCALING, *NETWORK)}
    for key in SCALING:
        config = load_config("", [key, str(DEFAULT_VALUES[key])])
        assert flatten_config(adopt(config, stored))[key] == DEFAULT_VALUES[key]
    assert flatten_config(adopt(load_config(), {})) == DEFAULT_VALUES


def test_the_configuration_itself_and_what_is_known_of_it_stay():
    config = load_config("", ["GPU_IDS", "[1]"])
    config.freeze()
    stored = recording("INPUT.SIZE_TEST")
    adopted = adopt(config, stored)
    adopted.INPUT.SIZE_TEST.append(1)
    assert config.INPUT.SIZE_TEST == [256, 128]
    assert stored["INPUT"]["SIZE_TEST"] == [256, 128, 7]
    assert adopted.GPU_IDS == [1]


def test_a_network_is_taken_whole_or_not_at_all():
    stored = recording(*NETWORK)
    stored["MODEL"]["NAME"] = "resnet18"

    def network(*opts, **kwargs):
        values = flatten_config(adopt(load_config("", opts), stored, **kwargs))
        return [values[key] for key in NETWORK]

    own = ["resnet50", 2048, 1]
    assert network() == network("MODEL.NAME", "resnet18") == ["resnet18", 2049, 2]
    assert network("MODEL.NAME", "resnet50") == network(may_name_network=False) == own
    assert network("MODEL.LAST_STRIDE", "1") == ["resnet18", 2049, 1]
    assert network("MODEL.NAME", "resnet18", may_name_network=False) == ["resnet18", 2049, 2]
