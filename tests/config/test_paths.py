"""``~`` and ``$VARIABLES`` in the keys that hold paths."""

import re

import pytest

from config import DEFAULT_VALUES
from config.flatten import flatten_config
from config.load import load_config
from config.paths import PATH_KEYS, expand_path, expand_paths
from utils.errors import ConfigError


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/big")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize(
    ("written", "expected"),
    [("~/x", "{home}/x"), ("$DATA/x", "/big/x"), ("${DATA}x", "/bigx"), ("a~/b", "a~/b"), ("", ""), ("x/y", "x/y")],
)
def test_paths_are_written_out_on_the_command_line_and_in_a_file(home, key, written, expected):
    (home / "user.yml").write_text(f"{key}: '{written}'\n")
    for config in (load_config("", [key, written]), load_config(home / "user.yml")):
        assert flatten_config(config)[key] == expected.format(home=home)


def test_other_texts_are_left_as_they_are():
    assert load_config("", ["LOGGING.MLFLOW_URI", "$DATA/~"]).LOGGING.MLFLOW_URI == "$DATA/~"
    text_keys = {key for key, value in DEFAULT_VALUES.items() if isinstance(value, str)}
    named = {key for key in text_keys if key.endswith(("_DIR", "_PATH"))}
    assert named == set(PATH_KEYS)


def test_weights_of_auto_are_written_out(home):
    for written, expected in (("auto:~/w.pth", f"auto:{home}/w.pth"), ("auto", "auto"), ("auto:", "auto:")):
        assert expected == load_config("", ["MODEL.PRETRAIN_PATH", written]).MODEL.PRETRAIN_PATH


def test_the_config_file_too(home):
    (home / "user.yml").write_text("GPU_IDS: [3]\n")
    assert load_config("~/user.yml").GPU_IDS == [3]
    with pytest.raises(ConfigError, match=r"--config_file is '\$NOWHERE/a.yml', but the environment variable NOWHERE"):
        load_config("$NOWHERE/a.yml")


@pytest.mark.parametrize("written", ["$NOWHERE/x", "/a/${NOWHERE}/x", "$DATA/$NOWHERE"])
def test_a_variable_that_is_not_set_is_named(written):
    expected = f"OUTPUT_DIR is {written!r}, but the environment variable NOWHERE is not set: export it, or write the "
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}path out.$"):
        load_config("", ["OUTPUT_DIR", written])


def test_a_file_whose_name_holds_such_characters_is_found(home):
    for name in ("$NOWHERE", "~x", "price $DATA"):
        (home / name).touch()
        assert expand_path(name, "KEY") == name
    assert expand_path("~no such user/x", "KEY") == "~no such user/x"


def test_a_path_that_a_program_set_to_none_is_no_path():
    config = load_config()
    config.MODEL.PRETRAIN_PATH = None
    expand_paths(config)
    assert config.MODEL.PRETRAIN_PATH == ""
