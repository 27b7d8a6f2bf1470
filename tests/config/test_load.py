"""load_config: conversions, the order of overlays, and an error for everything that cannot be meant."""

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from config import cfg
from config.flatten import flatten_config
from config.load import load_config, nearest_key
from tests.support import GOLDEN, ROOT
from utils.errors import ConfigError

KEYS = list(flatten_config(cfg))


def write(folder: Path, text: str) -> Path:
    path = folder / "user.yml"
    path.write_text(text, encoding="utf-8")
    return path


def value_of(key: str, *opts: Any) -> Any:
    return flatten_config(load_config("", [key, *opts]))[key]


@pytest.mark.parametrize(
    ("key", "given_value", "expected"),
    [
        ("GPU_IDS", "[0]", [0]),
        ("GPU_IDS", "[]", []),
        ("GPU_IDS", "(0,1)", [0, 1]),
        ("GPU_IDS", (0, 1), [0, 1]),
        ("DATASETS.NAMES", "'market1501'", "market1501"),
        ("DATASETS.NAMES", '"df1"', "df1"),
        ("DATASETS.NAMES", "df1", "df1"),
        ("DATASETS.ROOT_DIR", Path("/data"), "/data"),
        ("DATASETS.ROOT_DIR", "2024_01", "2024_01"),
        ("DATASETS.ROOT_DIR", "-data", "-data"),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.BASE_LR", 1, 1.0),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.BASE_LR", np.float32(0.5), 0.5),
        ("SOLVER.MAX_EPOCHS", np.int64(7), 7),
        ("SOLVER.MAX_EPOCHS", " 7 ", 7),
        ("SOLVER.MARGIN", "None", None),
        ("SOLVER.MARGIN", None, None),
        ("SOLVER.MARGIN", "0", 0.0),
        ("SOLVER.LR_STEPS", "[3, 5]", (3, 5)),
        ("SOLVER.LR_STEPS", [3, 5], (3, 5)),
        ("SOLVER.LR_STEPS", "()", ()),
        ("INPUT.PIXEL_MEAN", "[0, 0, 0]", [0.0, 0.0, 0.0]),
        ("TRAINER.PRECISION", 32, "32"),
        ("TRAINER.PRECISION", "32", "32"),
        ("TRAINER.PRECISION", "bf16-mixed", "bf16-mixed"),
        ("TRAINER.PRECISION", None, ""),
        ("MODEL.PRETRAINED", "False", False),
        ("MODEL.PRETRAINED", "false", False),
        ("MODEL.PRETRAINED", True, True),
        ("TEST.VISUALIZE", "yes", "yes"),
        ("DATALOADER.NUM_WORKERS", "-1", -1),
        ("SOLVER.DIST_BACKEND", "ddp_cpu", "ddp_cpu"),
    ],
)
def test_values_take_the_type_of_their_key(key: str, given_value: Any, expected: Any) -> None:
    actual = value_of(key, given_value)
    assert actual == expected
    assert type(actual) is type(expected)
    if isinstance(expected, list | tuple):
        assert [type(item) for item in actual] == [type(item) for item in expected]


def test_yaml_values_take_the_type_of_their_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
MODEL: {PRETRAIN_PATH: 2024_01, PRETRAINED: no}
INPUT:
  SIZE_TRAIN: [64, 32]
  PIXEL_MEAN: [0, 1e-1, 0.5]
SOLVER:
  BASE_LR: 1
  CENTER_LR: 1e-4
  LR_STEPS: (3, 5)
  MARGIN: null
TEST:
  VISUALIZE: yes
  IMS_PER_BATCH: &images 12
TRAINER:
  PRECISION: 32
DATASETS:
LOGGING.MLFLOW: False
REPRODUCIBLE_NUM_RUNS: *images
OUTPUT_DIR: 2024-02-03
""",
    )
    expected = {
        "MODEL.PRETRAIN_PATH": "2024_01",
        "MODEL.PRETRAINED": False,
        "INPUT.SIZE_TRAIN": [64, 32],
        "INPUT.PIXEL_MEAN": [0.0, 0.1, 0.5],
        "SOLVER.BASE_LR": 1.0,
        "SOLVER.CENTER_LR": 1e-4,
        "SOLVER.LR_STEPS": (3, 5),
        "SOLVER.MARGIN": None,
        "TEST.VISUALIZE": "yes",
        "TEST.IMS_PER_BATCH": 12,
        "TRAINER.PRECISION": "32",
        "LOGGING.MLFLOW": False,
        "REPRODUCIBLE_NUM_RUNS": 12,
        "OUTPUT_DIR": "2024-02-03",
    }
    assert flatten_config(load_config(path)) == flatten_config(cfg) | expected


def test_a_merge_key_in_yaml_is_resolved(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "INPUT:\n  <<: {PADDING: 3, PROB: 0.25}\n  PROB: 0\n"))
    assert (config.INPUT.PADDING, config.INPUT.PROB) == (3, 0.0)


def test_old_files_with_every_recorded_key_are_accepted(tmp_path: Path) -> None:
    recorded = json.loads((GOLDEN / "config_defaults.json").read_text())
    config = load_config(write(tmp_path, yaml.safe_dump(recorded)))
    assert recorded["DATALOADER"]["NUM_WORKERS"] == config.DATALOADER.NUM_WORKERS
    assert tuple(recorded["SOLVER"]["LR_STEPS"]) == config.SOLVER.LR_STEPS


def test_a_dumped_configuration_loads_as_itself(tmp_path: Path) -> None:
    config = load_config("", ["SOLVER.LR_STEPS", "(3, 5)", "SOLVER.MARGIN", "None", "OUTPUT_DIR", "2024"])
    assert load_config(write(tmp_path, config.dump())) == config


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "MODEL:\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)) == cfg


def test_pairs_override_the_file_and_later_pairs_earlier_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "SOLVER: {MAX_EPOCHS: 5, EVAL_PERIOD: 3}\n")
    config = load_config(path, ["SOLVER.MAX_EPOCHS", "6", "SOLVER.MAX_EPOCHS", "7"])
    assert (config.SOLVER.MAX_EPOCHS, config.SOLVER.EVAL_PERIOD) == (7, 3)


def test_the_result_is_mutable_and_the_shared_tree_untouched(tmp_path: Path) -> None:
    before = copy.deepcopy(cfg)
    config = load_config(write(tmp_path, "MODEL: {NAME: resnet18}\n"), ["GPU_IDS", "[3]"])
    config.MODEL.NAME = "resnet34"
    config.GPU_IDS.append(4)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "user.yml", ["SOLVER.MAX_EPOCHS", "1", "NO_SUCH_KEY", "1"])
    assert cfg == before


def test_a_frozen_shared_tree_gives_a_mutable_result() -> None:
    cfg.freeze()
    try:
        load_config("", ["SOLVER.MAX_EPOCHS", "3"]).OUTPUT_DIR = "out"
    finally:
        cfg.defrost()


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.NAM", "resnet18"], ["'MODEL.NAM'", "nearest", "MODEL.NAME"]),
        (["BASE_LR", "1"], ["'BASE_LR'", "SOLVER.BASE_LR"]),
        (["MODEL.BASE_LR", "1"], ["'MODEL.BASE_LR'", "SOLVER.BASE_LR"]),
        (["solver.base_lr", "1"], ["'solver.base_lr'", "SOLVER.BASE_LR"]),
        (["MODEL.NAME.X", "1"], ["'MODEL.NAME.X'", "MODEL.NAME"]),
        (["OUTPUT_DIR=x", "1"], ["'OUTPUT_DIR=x'", "OUTPUT_DIR.", "without '='"]),
        (["", "1"], ["''", "nearest"]),
        (["SOLVER", "1"], ["SOLVER is a section", "SOLVER.OPTIMIZER_NAME"]),
        (["SOLVER.MAX_EPOCHS"], ["SOLVER.MAX_EPOCHS has no value", "KEY VALUE"]),
        (["GPU_IDS", "[0]", "SOLVER.MAX_EPOCHS"], ["SOLVER.MAX_EPOCHS has no value"]),
        (["MODEL.NAME", "SOLVER.BASE_LR", "1"], ["MODEL.NAME has no value"]),
        (["GPU_IDS", [0], "MODEL.NAME"], ["MODEL.NAME has no value"]),
        (["SOLVER.MAX_EPOCHS", "many"], ["SOLVER.MAX_EPOCHS", "'many'", "an integer"]),
        (["SOLVER.MAX_EPOCHS", "1.5"], ["SOLVER.MAX_EPOCHS", "1.5", "an integer"]),
        (["SOLVER.MAX_EPOCHS", "True"], ["SOLVER.MAX_EPOCHS", "an integer"]),
        (["SOLVER.MAX_EPOCHS", "None"], ["SOLVER.MAX_EPOCHS", "an integer"]),
        (["SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR", "'fast'", "a number"]),
        (["SOLVER.BASE_LR", "True"], ["SOLVER.BASE_LR", "a number"]),
        (["SOLVER.BASE_LR", 10**400], ["SOLVER.BASE_LR", "a number"]),
        (["SOLVER.MARGIN", "soft"], ["SOLVER.MARGIN", "'soft'", "a number or None"]),
        (["MODEL.PRETRAINED", "1"], ["MODEL.PRETRAINED", "True or False"]),
        (["MODEL.PRETRAINED", "yes"], ["MODEL.PRETRAINED", "'yes'", "True or False"]),
        (["GPU_IDS", "0"], ["GPU_IDS", "a list such as [0]"]),
        (["GPU_IDS", "[0,", "SOLVER.MAX_EPOCHS", "1"], ["GPU_IDS", "'[0,'", "quotes"]),
        (["GPU_IDS", "['a']"], ["GPU_IDS", "a list"]),
        (["INPUT.PIXEL_MEAN", "[[0], 0, 0]"], ["INPUT.PIXEL_MEAN", "a list"]),
        (["MODEL.NAME", ["resnet18"]], ["MODEL.NAME", "text"]),
        (["MODEL.NAME", True], ["MODEL.NAME", "text"]),
    ],
)
def test_wrong_pairs_are_named(opts: list[Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("", opts)
    message = str(caught.value)
    assert "command line" in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MODEL:\n  NAME: resnet18\n  NAMME: x\n", ["'MODEL.NAMME'", "line 3", "MODEL.NAME"]),
        ("MODULE:\n  NAME: resnet18\n", ["'MODULE'", "line 1", "nearest"]),
        ("\nMODEL: resnet18\n", ["MODEL is a section", "line 2"]),
        ("MODEL: [resnet18]\n", ["MODEL is a section", "line 1"]),
        ("GPU_IDS:\n  FIRST: 0\n", ["GPU_IDS", "line 2", "a list"]),
        ("SOLVER:\n  MAX_EPOCHS: many\n", ["SOLVER.MAX_EPOCHS", "'many'", "line 2", "an integer"]),
        ("OUTPUT_DIR: [a]\n", ["OUTPUT_DIR", "line 1", "text"]),
        ("SOLVER:\n  MAX_EPOCHS: 2024-02-31\n", ["SOLVER.MAX_EPOCHS", "'2024-02-31'", "line 2"]),
        ("SOLVER:\n  MAX_EPOCHS: 1\n BAD: 2\n", ["line 3", "not valid YAML"]),
        ("MODEL:\n\tNAME: x\n", ["line 2", "not valid YAML"]),
        ("GPU_IDS: [0\n", ["not valid YAML", "line"]),
        ("GPU_IDS: !!python/object/apply:os.getcwd []\n", ["line 1", "not valid YAML"]),
        ("MODEL: {NAME: x}\n---\nMODEL: {NAME: y}\n", ["line 2", "not valid YAML"]),
        ("SOLVER:\n  BASE_LR: 1\n  GAMMA: 1\n  BASE_LR: 2\n", ["SOLVER.BASE_LR occurs twice", "lines 2 and 4"]),
        ("SOLVER:\n  BASE_LR: 1\nSOLVER:\n  GAMMA: 1\n", ["SOLVER occurs twice", "lines 1 and 3"]),
        ("- MODEL\n", ["holds no sections"]),
        ("just words\n", ["holds no sections"]),
        ("SOLVER: {BASE_LR: .inf}\n", ["SOLVER.BASE_LR", "inf", "finite"]),
        ("SOLVER: {BASE_LR: .nan}\n", ["SOLVER.BASE_LR", "nan", "finite"]),
        ("MODEL: {1: 2}\n", ["'MODEL.1'"]),
        ("OUTPUT_DIR: '\x07'\n", ["not valid YAML"]),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    if "finite" not in words:
        assert str(path) in message


@pytest.mark.parametrize("name", ["toy_resnet18_cpu.yml", "configs/toy_resnet18_cpu.yml"])
def test_configs_of_the_project_are_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name).MODEL.NAME == "resnet18"
    (line,) = caplog.messages
    assert line == f"--config_file {name}: taken from {ROOT / 'configs'}, since there is no such file in {tmp_path}."
    caplog.clear()
    monkeypatch.setenv("LOCAL_RANK", "1")
    load_config(name)
    assert not caplog.messages  # the first process has said it


def test_a_file_of_the_user_comes_before_one_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy_resnet18_cpu.yml").write_text("MODEL: {NAME: resnet34}")
    assert load_config("toy_resnet18_cpu.yml").MODEL.NAME == "resnet34"
    assert not caplog.messages


@pytest.mark.parametrize("name", ["mine/toy_resnet18_cpu.yml", "../configs/toy_resnet18_cpu.yml", "configs/no.yml"])
def test_no_other_name_stands_for_a_config_of_the_project(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(name)


def test_a_link_of_the_user_to_a_file_that_is_gone_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy_resnet18_cpu.yml").symlink_to("gone.yml")
    with pytest.raises(ConfigError, match=r"toy_resnet18_cpu\.yml does not exist"):
        load_config("toy_resnet18_cpu.yml")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        load_config(f"{'x' * 300}.yml")


def test_a_missing_file_a_folder_and_a_binary_file(tmp_path: Path) -> None:
    own = re.escape(
        "256_resnet50.yml, 320_resnet50_ibn_a.yml, clip_vit_b16.yml, convnext_tiny.yml, osnet_x1_0.yml, "
        "resnet50_bot.yml, toy_resnet18_cpu.yml, vit_base.yml, vit_small_dinov2.yml"
    )
    with pytest.raises(ConfigError, match=rf"does not exist \(looked in .*\); the project's own are {own}\.$"):
        load_config(str(tmp_path / "no.yml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "weights.yml").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match=r"weights\.yml is not UTF-8"):
        load_config(tmp_path / "weights.yml")


def test_arguments_of_losses_are_dictionaries_in_files_and_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "losses.yml"
    path.write_text("LOSSES:\n  EXTRA: [circle, supcon]\n  EXTRA_ARGS: [{m: 0.25, gamma: 128}, {}]\n")
    expected = [{"m": 0.25, "gamma": 128}, {}]
    given = ["LOSSES.EXTRA", "['circle', 'supcon']", "LOSSES.EXTRA_ARGS", "[{'m': 0.25, 'gamma': 128}, {}]"]
    for config in (load_config(path), load_config("", given), load_config(path).clone()):
        assert list(config.LOSSES.EXTRA_ARGS) == expected
    path.write_text(load_config(path).dump())
    assert expected == load_config(path).LOSSES.EXTRA_ARGS


RULES = [
    ("MODEL.LAST_STRIDE", "3", "1, 2"),
    ("MODEL.BACKBONE_EMB_SIZE", "-1", "0 or more"),
    ("INPUT.SIZE_TRAIN", "[256]", "two integers"),
    ("INPUT.SIZE_TEST", "[256, 0]", "two integers"),
    ("INPUT.PROB", "1.5", "0 to 1"),
    ("INPUT.RE_PROB", "-0.1", "0 to 1"),
    ("INPUT.PADDING", "-1", "0 or more"),
    ("INPUT.PIXEL_MEAN", "[0.5]", "three numbers"),
    ("INPUT.PIXEL_STD", "[0.5, 0.5, 0]", "three numbers above 0"),
    ("INPUT.RESIZE", "crop", "'stretch', 'pad'"),
    ("INPUT.RE_MODE", "const", "'mean', 'pixel'"),
    ("INPUT.RE_AREA", "[0.4, 0.02]", "the least and the greatest share, 0 to 1"),
    ("INPUT.RE_AREA", "[0.1, 1.1]", "the least and the greatest share, 0 to 1"),
    ("INPUT.RE_AREA", "[1.0, 1.0]", "the least and the greatest share, 0 to 1"),
    ("INPUT.RE_AREA", "[0.1]", "the least and the greatest share, 0 to 1"),
    ("INPUT.COLOR_JITTER", "[0.1, 0.1, 0.1]", "brightness, contrast, saturation and hue, four numbers of 0 or more"),
    ("INPUT.COLOR_JITTER", "[-0.1, 0, 0, 0]", "four numbers of 0 or more"),
    ("INPUT.COLOR_JITTER", "[1, 1, 1, 0.6]", "the last at most 0.5; or []"),
    ("INPUT.COLOR_JITTER", "['a', 1, 1, 0]", "four numbers of 0 or more"),
    ("INPUT.COLOR_JITTER_PROB", "2", "0 to 1"),
    ("INPUT.GRAY_PROB", "-1", "0 to 1"),
    ("INPUT.RAND_AUGMENT", "[2]", "the number of operations, 1 or more, and their magnitude, 0 to 30, two integers"),
    ("INPUT.RAND_AUGMENT", "[0, 9]", "number of operations, 1 or more"),
    ("INPUT.RAND_AUGMENT", "[2, 31]", "magnitude, 0 to 30"),
    ("INPUT.RAND_AUGMENT", "[2, 9.5]", "two integers; or []"),
    ("TEST.FLIP", "3", "True or False"),
    ("DATASETS.NAMES", "", "expected a name"),
    ("DATALOADER.NUM_WORKERS", "-2", "-1 or more"),
    ("DATALOADER.SAMPLER", "softmax", "'random_identity'"),
    ("DATALOADER.NUM_INSTANCE", "1", "2 or more"),
    ("LOSSES.EXTRA_ARGS", "{'m': 0.25}", "a list"),
    ("LOSSES.EXTRA_ARGS", "['m=0.25']", "expected a dictionary of arguments for each loss, such as [{'m': 0.25}, {}]"),
    ("LOSSES.EXTRA_ARGS", "[{1: 2}]", "expected a dictionary of arguments for each loss"),
    ("LOSSES.EXTRA_ARGS", "[{'m': 0.25}]", "but LOSSES.EXTRA is []; expected a dictionary for each loss, or none"),
    ("SOLVER.OPTIMIZER_NAME", "Lamb", "'Adam', 'AdamW', 'SGD'"),
    ("SOLVER.MOMENTUM", "1.5", "0 to 1"),
    ("SOLVER.LABEL_SMOOTHING", "-0.1", "0 to 1"),
    ("SOLVER.HEAD_LR_FACTOR", "0", "more than 0"),
    ("SOLVER.BIAS_LR_FACTOR", "-1", "more than 0"),
    ("SOLVER.LAYER_DECAY", "0", "more than 0"),
    ("SOLVER.BIAS_DECAY_FACTOR", "-1", "0 or more"),
    ("SOLVER.WARMUP_STEPS", "-1", "0 or more"),
    ("SOLVER.FREEZE_EPOCHS", "-1", "0 or more"),
    ("MODEL.FREEZE_AT", "[5]", "list of name patterns"),
    ("SOLVER.MAX_EPOCHS", "0", "1 or more"),
    ("SOLVER.BASE_LR", "-1", "0 or more"),
    ("SOLVER.MARGIN", "-1", "0 or more"),
    ("SOLVER.DISTANCE_FUNC", "manhattan", "'euclidean', 'cosine'"),
    ("SOLVER.LR_SCHEDULER_NAME", "step", "'multistep_lr', 'cosine_annealing'"),
    ("SOLVER.GAMMA", "0", "more than 0"),
    ("MODEL.DROP_PATH", "1.0", "0 to below 1"),
    ("MODEL.DROP_PATH", "-0.1", "0 or more"),
    ("MODEL.PATCH_STRIDE", "-1", "0 or more"),
    ("SOLVER.LR_STEPS", "(70, 40)", "ascending"),
    ("SOLVER.LR_STEPS", "(0, 40)", "above 0"),
    ("SOLVER.MONITOR_METRIC_NAME", "", "expected a name"),
    ("SOLVER.MONITOR_METRIC_MODE", "most", "'max', 'min'"),
    ("SOLVER.EVAL_PERIOD", "0", "1 or more"),
    ("SOLVER.ACCUMULATE", "0", "1 or more"),
    ("SOLVER.CLIP_GRAD_NORM", "-1", "0 or more"),
    ("SOLVER.EMA_DECAY", "-0.1", "0 or more"),
    ("SOLVER.EMA_DECAY", "1", "0 or more, and less than 1"),
    ("DATASETS.TESTS", "market1501+veri776+market1501", "names 'market1501' twice; expected different names joined"),
    ("DATASETS.TESTS", "market1501+", "without a name beside it"),
    ("SOLVER.IMS_PER_BATCH", "0", "1 or more"),
    ("SOLVER.DIST_BACKEND", "dp", "use 'ddp'"),
    ("SOLVER.DIST_BACKEND", "ddp2", "no longer"),
    ("SOLVER.DIST_BACKEND", "horovod", "'ddp', 'ddp_spawn', 'ddp_cpu'"),
    ("SOLVER.USE_AUTOMATIC_OPTIM", "True", "only False"),
    ("TEST.VISUALIZE", "True", "'yes', 'no'"),
    ("TRAINER.ACCELERATOR", "tpu", "'auto', 'cpu', 'gpu', 'mps'"),
    ("TRAINER.NUM_NODES", "0", "1 or more"),
    ("TRAINER.PRECISION", "half", "'bf16-mixed'"),
    ("GPU_IDS", "[-1]", "0 or more"),
    ("GPU_IDS", "[0, 0]", "different"),
    ("REPRODUCIBLE_NUM_RUNS", "0", "1 or more"),
    ("REPRODUCIBLE_SEED", "4294967296", "0 to 4294967295"),
]


@pytest.mark.parametrize(("key", "text", "words"), RULES)
def test_values_that_cannot_work_are_refused(key: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        value_of(key, text)
    message = str(caught.value)
    assert key in message
    assert text.strip("[]()") in message


@pytest.mark.parametrize("key", ["TEST.ONLY_TEST", "MODEL.RESUME_TRAINING"])
def test_a_checkpoint_must_be_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"MODEL.PRETRAIN_PATH is empty; with {key} True"):
        load_config("", [key, "True"])
    load_config("", [key, "True", "MODEL.PRETRAIN_PATH", "a.ckpt"])


@pytest.mark.parametrize("key", KEYS)
def test_nearest_key_mends_a_dropped_letter_and_a_lost_section(key: str) -> None:
    # Without its second letter, not its last: RERANK_K1 and RERANK_K2 differ in that one.
    assert nearest_key(key[0] + key[2:], KEYS) == key
    assert nearest_key(key.lower(), KEYS) == key
    name = key.rpartition(".")[2]
    assert nearest_key(name, KEYS).rpartition(".")[2] == name


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))


@given(st.sampled_from(KEYS), st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text(), scalars)))
@settings(max_examples=300)
def test_any_value_is_converted_to_the_type_of_its_key_or_refused(key: str, value: Any) -> None:
    default = flatten_config(cfg)[key]
    for form in (value, str(value)):
        try:
            actual = value_of(key, form)
        except ConfigError as error:
            assert key in str(error) or "PRETRAIN_PATH" in str(error)
            continue
        assert type(actual) is type(default) or (key == "SOLVER.MARGIN" and actual is None)


@given(st.dictionaries(st.sampled_from(KEYS), st.just(None)))
@settings(max_examples=30)
def test_defaults_as_text_are_a_fixed_point(keys: dict[str, None]) -> None:
    values = flatten_config(cfg)
    opts = [item for key in keys for item in (key, str(values[key]))]
    assert load_config("", opts) == cfg
    assert all(ast.literal_eval(repr(value)) == value for value in values.values())
