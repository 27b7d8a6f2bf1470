"""A configuration beside the one that a checkpoint records: every key is compared, or is known not to be."""

import pytest

from checkpoints.plain import to_plain
from checkpoints.reading import load_checkpoint
from config import DEFAULT_VALUES, cfg
from config.flatten import flatten_config
from config.load import load_config
from config.recorded import COMPARED, NETWORK, NOT_COMPARED, OPTIMISATION, SCALING, adopt, check_recorded, differences
from utils.errors import CheckpointError


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


def test_who_builds_the_optimisers_decides_about_their_settings():
    config = load_config("", ["SOLVER.BASE_LR", "0.5", "SOLVER.EVAL_PERIOD", "7"])
    stored = recording() | {"SOLVER": {"BASE_LR": 0.25, "EVAL_PERIOD": 3}}
    assert differences(config, stored, optimised_by="Mine.configure_optimizers") == [
        "SOLVER.BASE_LR: 0.25 in the checkpoint, 0.5 here; which is used depends on Mine.configure_optimizers: "
        "its own optimisers continue as the checkpoint left them.",
        "SOLVER.EVAL_PERIOD: 3 in the checkpoint, 7 here, which is used.",
    ]
    assert set(OPTIMISATION) <= set(COMPARED)


def test_passwords_are_not_shown():
    config = load_config("", ["LOGGING.MLFLOW_URI", "https://me:secret@host/x"])
    (line,) = differences(config, recording())
    assert line == "LOGGING.MLFLOW_URI: '' in the checkpoint, 'https://***@host/x' here, which is used."


WRONG = {
    "INPUT.SIZE_TEST": (64, "is 64; expected a list such as [256, 128]"),
    "INPUT.SIZE_TRAIN": (None, "is None; expected a list such as [256, 128]"),
    "INPUT.PIXEL_MEAN": (["a", "b", "c"], "is ['a', 'b', 'c']; expected three numbers"),
    "INPUT.PIXEL_STD": ([1, None, 1], "is [1, None, 1]; expected three numbers above 0"),
    "INPUT.EXIF_ORIENTATION": ("maybe", "is 'maybe'; expected True or False"),
    "INPUT.DRAFT_DECODING": ("maybe", "is 'maybe'; expected True or False"),
    "INPUT.RESIZE": ("crop", "is 'crop'; allowed: 'stretch', 'pad'"),
    "TEST.FLIP": ("left", "is 'left'; expected True or False"),
    "MODEL.NAME": (5, "is 5; expected text"),
    "MODEL.BACKBONE_EMB_SIZE": ("x", "is 'x'; expected a number"),
    "MODEL.LAST_STRIDE": (None, "is None; expected a number"),
    "MODEL": (None, "is None; expected a section with keys"),
    "INPUT": (3, "is 3; expected a section with keys"),
    "num_classes": ("x", "is 'x'; expected an integer"),
    "data_seed": ([], "is []; expected an integer"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_recorded_value_of_a_wrong_type_names_the_file(key):
    value, message = WRONG[key]
    stored = recording()
    section, _, name = key.rpartition(".")
    (stored[section] if section else stored)[name] = value
    with pytest.raises(CheckpointError) as error:
        check_recorded(stored, "a.ckpt")
    assert str(error.value) == f"a.ckpt records a value that cannot work: {key} {message}."


def test_recordings_that_can_work(legacy_path):
    check_recorded({}, "a.ckpt")
    check_recorded(recording() | {"mine": [1], "SOLVER": {"DIST_BACKEND": "dp"}}, "a.ckpt")  # no longer, nor needed
    check_recorded(load_checkpoint(legacy_path)["hyper_parameters"], legacy_path)


def test_a_recording_that_lacks_keys_or_has_more_is_no_difference():
    assert differences(load_config(), {}) == []
    assert differences(load_config(), {"MODEL": {}, "SOLVER": None, "data_seed": 3}) == []
    assert differences(load_config(), recording()) == []


def test_a_checkpoint_of_an_older_version_was_trained_without_the_newer_parts_of_a_network():
    stored = recording()
    del stored["MODEL"]["STEM_RELU"]
    config = load_config("", ["MODEL.STEM_RELU", "True"])
    assert differences(config, stored, NETWORK) == [
        "MODEL.STEM_RELU: False in the checkpoint, True here, which is used."
    ]
    assert differences(config, {}, NETWORK) == differences(config, {"MODEL": {}}, NETWORK) == []  # no checkpoint
    assert adopt(config, stored).MODEL.STEM_RELU and not adopt(load_config(), stored).MODEL.STEM_RELU


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

    own, there = ["resnet50", 2048, 1, False, 0, "avg", 0], ["resnet18", 2049, 2, True, 1, "other", 1]
    assert network() == network("MODEL.NAME", "resnet18") == there
    assert network("MODEL.NAME", "resnet50") == network(may_name_network=False) == own
    assert network("MODEL.LAST_STRIDE", "1") == ["resnet18", 2049, 1, True, 1, "other", 1]
    assert network("MODEL.NAME", "resnet18", may_name_network=False) == there
