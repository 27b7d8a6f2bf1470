"""Who set a value, and how clearly."""

import copy
import pickle

import pytest

from config import DEFAULT_VALUES, cfg
from config.flatten import flatten_config
from config.load import load_config
from config.origins import naming_the_default_folder, strength, was_set
from config.switches import find_unused
from tests.launch import run_code
from utils.errors import MissingFolderError, UserError


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "user.yml"
    path.write_text("INPUT: {SIZE_TEST: [256, 128], PADDING: 3}\n")
    return load_config(path, ["SOLVER.GAMMA", "0.1", "GPU_IDS", "[1]"])


COPIES = {
    "itself": lambda node: node,
    "clone": lambda node: node.clone(),
    "deep copy": copy.deepcopy,
    "pickle": lambda node: pickle.loads(pickle.dumps(node)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_set_keys_are_those_of_the_file_and_of_the_command_line_also_to_their_defaults(config, copied):
    same = copied(config)
    assert same == config
    expected = {"INPUT.SIZE_TEST": 0, "INPUT.PADDING": 1, "SOLVER.GAMMA": 2, "GPU_IDS": 2}
    assert [key for key in DEFAULT_VALUES if was_set(same, key)] == [key for key in DEFAULT_VALUES if key in expected]
    assert {key: strength(same, key) for key in DEFAULT_VALUES} == dict.fromkeys(DEFAULT_VALUES, 0) | expected


def test_the_command_line_counts_more_than_the_file(tmp_path):
    path = tmp_path / "user.yml"
    path.write_text("INPUT: {PADDING: 3}\n")
    assert strength(load_config(path), "INPUT.PADDING") == 1
    assert strength(load_config(path, ["INPUT.PADDING", "3"]), "INPUT.PADDING") == 2


def test_the_notes_of_one_configuration_are_not_those_of_another(config):
    assert not was_set(load_config(), "GPU_IDS")
    clone = config.clone()
    clone.__dict__["_origins"].clear()
    assert was_set(config, "INPUT.SIZE_TEST")


def test_a_value_that_a_program_merges_or_assigns_is_set_if_it_is_not_the_default():
    merged = cfg.clone()
    merged.merge_from_list(["INPUT.SIZE_TEST", [64, 32], "SOLVER.LR_STEPS", [40, 70]])
    merged.GPU_IDS = []
    assert [key for key in DEFAULT_VALUES if was_set(merged, key)] == ["INPUT.SIZE_TEST", "GPU_IDS"]
    assert strength(merged, "INPUT.SIZE_TEST") == 1


def test_what_a_program_merges_into_the_shared_tree_is_set_too():
    done = run_code(
        "from config import cfg\n"
        "cfg.merge_from_file('configs/320_resnet50_ibn_a.yml')\n"
        "cfg.INPUT.PIXEL_MEAN[0] = 0.5\n"
        "from config.load import load_config\n"
        "from config.origins import was_set\n"
        "for node in (cfg, load_config()):\n"
        "    print(*(was_set(node, key) for key in ('INPUT.SIZE_TEST', 'INPUT.PIXEL_MEAN', 'INPUT.PIXEL_STD')))\n"
    )
    assert done.stdout == "True True False\n" * 2, done.stderr


def test_default_values_are_those_of_the_file():
    assert flatten_config(cfg) == DEFAULT_VALUES


def test_a_missing_folder_names_the_default_that_nobody_set():
    def ask(config, message="Folder /home/data/market1501 does not exist."):
        with naming_the_default_folder(config):
            raise MissingFolderError(message)

    with pytest.raises(MissingFolderError) as caught:
        ask(load_config())
    assert str(caught.value) == (
        "Folder /home/data/market1501 does not exist. It is '/home/data', the default: nothing sets DATASETS.ROOT_DIR."
    )
    for config, message in (
        (load_config("", ["DATASETS.ROOT_DIR", "/home/data"]), "Folder /home/data/market1501 does not exist."),
        (load_config(), "Table /elsewhere.csv does not exist."),
    ):
        with pytest.raises(UserError) as caught:
            ask(config, message)
        assert str(caught.value) == message


def test_nobody_set_a_key_that_a_tree_lacks():
    config = load_config()
    del config.TEST["WEIGHT"]
    assert not was_set(config, "TEST.WEIGHT")
    assert find_unused(config) == []
