"""The eight experiments: each runs with a recorder in place of Python; its command is loaded as the script would."""

import json
import shutil
import stat
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from yacs.config import CfgNode

from config.cli import build_parser, parse_args
from config.flatten import flatten_config
from config.load import load_config
from tests.launch import run_command
from tests.support import ROOT

SCRIPTS = ROOT / "train_scripts"
EXPERIMENTS = sorted(str(path.relative_to(SCRIPTS)) for path in SCRIPTS.glob("*/*.sh"))

PERSON = {"SOLVER.IMS_PER_BATCH": 16, "TEST.IMS_PER_BATCH": 128, "SOLVER.BASE_LR": 3.5e-4, "MODEL.NAME": "resnet50"}
PERSON_CTL = PERSON | {"DATALOADER.USE_RESAMPLING": False}
PERSON_BASE = PERSON | {
    "DATALOADER.USE_RESAMPLING": True,
    "USE_MIXED_PRECISION": False,
    "MODEL.USE_CENTROIDS": False,
    "REPRODUCIBLE_NUM_RUNS": 1,
}
FASHION = {"SOLVER.BASE_LR": 1e-4, "MODEL.KEEP_CAMID_CENTROIDS": False, "DATALOADER.USE_RESAMPLING": False}
SMALL = FASHION | {"SOLVER.IMS_PER_BATCH": 48, "MODEL.NAME": "resnet50", "INPUT.SIZE_TRAIN": [256, 128]}
LARGE = FASHION | {"MODEL.NAME": "resnet50_ibn_a", "INPUT.SIZE_TRAIN": [320, 320], "INPUT.SIZE_TEST": [320, 320]}
DF1 = {"DATASETS.NAMES": "df1", "TEST.IMS_PER_BATCH": 128}
STREET = {"DATASETS.NAMES": "street2shop", "TEST.IMS_PER_BATCH": 256}

EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "market1501/train_ctl_model_s_r50.sh": ("train_ctl_model.py", PERSON_CTL | {"DATASETS.NAMES": "market1501"}),
    "market1501/train_base_model_s_r50.sh": ("train_base_model.py", PERSON_BASE | {"DATASETS.NAMES": "market1501"}),
    "dukemtmc/train_ctl_model_s_r50.sh": ("train_ctl_model.py", PERSON_CTL | {"DATASETS.NAMES": "dukemtmcreid"}),
    "dukemtmc/train_base_model_s_r50.sh": ("train_base_model.py", PERSON_BASE | {"DATASETS.NAMES": "dukemtmcreid"}),
    "df1/train_ctl_model_s_r50.sh": ("train_ctl_model.py", SMALL | DF1),
    "df1/train_ctl_model_l_r50ibn.sh": ("train_ctl_model.py", LARGE | DF1 | {"SOLVER.IMS_PER_BATCH": 12}),
    "street2shop/train_ctl_model_s_r50.sh": ("train_ctl_model.py", SMALL | STREET),
    "street2shop/train_ctl_model_l_r50ibn.sh": ("train_ctl_model.py", LARGE | STREET | {"SOLVER.IMS_PER_BATCH": 14}),
}


class Recorder:
    """Runs an experiment with a program that notes how it was called, and reads its notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "recorder"
        self.python.parent.mkdir()
        notes = folder / "notes.json"
        self.python.write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            f"json.dump([os.getcwd(), sys.argv[1:]], open({str(notes)!r}, 'w'))\n"
            "sys.exit(int(os.environ.get('RECORDER_STATUS', 0)))\n"
        )
        self.python.chmod(0o755)

    def run(self, script: Path, *arguments: str, **environment: str) -> CompletedProcess[str]:
        unset = dict.fromkeys(("DATA_ROOT", "JSON_TRAIN_PATH", "OUTPUT_DIR"))
        changes = {**unset, "PYTHON": str(self.python), **environment}
        return run_command(script, *arguments, cwd=self.folder, env=changes, timeout=60)

    def called(self) -> tuple[Path, str, list[str]]:
        """Working folder, entry script and arguments of the recorded call."""
        folder, (script, *arguments) = json.loads((self.folder / "notes.json").read_text())
        return Path(folder), script, arguments

    def config(self) -> CfgNode:
        folder, _, arguments = self.called()
        index = arguments.index("--config_file") + 1
        arguments[index] = str(folder / arguments[index])
        return parse_args(build_parser("A script."), arguments)[1]


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path.resolve())


def test_the_eight_experiments_are_there() -> None:
    assert sorted(EXPECTED) == EXPERIMENTS


@pytest.mark.parametrize("name", [*EXPERIMENTS, "common.sh"])
def test_it_parses(name: str) -> None:
    result = run_command("bash", "-n", SCRIPTS / name)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_is_executable_and_runs_the_right_script_with_its_settings(name: str, recorder: Recorder) -> None:
    assert (SCRIPTS / name).stat().st_mode & stat.S_IXUSR
    result = recorder.run(SCRIPTS / name, DATA_ROOT="/data/set", JSON_TRAIN_PATH="/data/train.json", OUTPUT_DIR="/out")
    assert (result.returncode, result.stderr) == (0, "")
    folder, script, _ = recorder.called()
    expected_script, settings = EXPECTED[name]
    assert (folder, script) == (ROOT, expected_script)
    settings = settings | {"DATASETS.ROOT_DIR": "/data/set", "OUTPUT_DIR": "/out"}
    if settings["DATASETS.NAMES"] in ("df1", "street2shop"):
        settings["DATASETS.JSON_TRAIN_PATH"] = "/data/train.json"
    actual = flatten_config(recorder.config())
    assert {key: actual[key] for key in settings} == settings


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_defaults_lie_in_the_repository(name: str, recorder: Recorder) -> None:
    assert recorder.run(SCRIPTS / name).returncode == 0
    config = recorder.config()
    assert config.DATASETS.ROOT_DIR.startswith(f"{ROOT}/data")
    assert f"{ROOT}/logs/{name.removesuffix('.sh')}" == config.OUTPUT_DIR
    if config.DATASETS.NAMES in ("df1", "street2shop"):
        assert config.DATASETS.JSON_TRAIN_PATH.startswith(f"{ROOT}/data/{config.DATASETS.NAMES}/")
        assert "train" in Path(config.DATASETS.JSON_TRAIN_PATH).name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_further_pairs_win_and_relative_paths_are_the_callers(name: str, recorder: Recorder) -> None:
    extra = [
        "SOLVER.MAX_EPOCHS",
        "1",
        "GPU_IDS",
        "[0, 1]",
        "MODEL.PRETRAIN_PATH",
        "my weights.pth",
        "SOLVER.BASE_LR",
        "1",
    ]
    environment = {"DATA_ROOT": "set one", "OUTPUT_DIR": "./out", "PYTHON": "bin/recorder"}
    result = recorder.run(SCRIPTS / name, *extra, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    config = recorder.config()
    assert (config.SOLVER.MAX_EPOCHS, config.GPU_IDS, config.SOLVER.BASE_LR) == (1, [0, 1], 1.0)
    assert str(recorder.folder / "my weights.pth") == config.MODEL.PRETRAIN_PATH
    assert str(recorder.folder / "set one") == config.DATASETS.ROOT_DIR
    assert Path(config.OUTPUT_DIR) == recorder.folder / "out"
    if config.DATASETS.NAMES in ("df1", "street2shop"):
        assert Path(config.DATASETS.JSON_TRAIN_PATH).is_relative_to(recorder.folder)


def test_path_pairs_may_be_quoted_empty_or_absolute(recorder: Recorder) -> None:
    name = "market1501/train_ctl_model_s_r50.sh"
    recorder.run(SCRIPTS / name, "OUTPUT_DIR", "'run 1'", "MODEL.PRETRAIN_PATH", "", "DATASETS.ROOT_DIR", '"/data"')
    config = recorder.config()
    assert str(recorder.folder / "run 1") == config.OUTPUT_DIR
    assert (config.MODEL.PRETRAIN_PATH, config.DATASETS.ROOT_DIR) == ("", "/data")


def test_home_and_variables_are_left_to_the_program(recorder: Recorder) -> None:
    pairs = ("OUTPUT_DIR", "~/run 1", "DATASETS.ROOT_DIR", "$SETS/market", "MODEL.PRETRAIN_PATH", "auto:~/w.pth")
    recorder.run(SCRIPTS / "market1501/train_ctl_model_s_r50.sh", *pairs)
    assert recorder.called()[2][-len(pairs) :] == list(pairs)


@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), ("auto:my weights.pth", "auto:{0}/my weights.pth")])
def test_the_newest_checkpoint_may_be_asked_for(given: str, expected: str, recorder: Recorder) -> None:
    recorder.run(SCRIPTS / "market1501/train_ctl_model_s_r50.sh", "MODEL.PRETRAIN_PATH", given)
    assert expected.format(recorder.folder) == recorder.config().MODEL.PRETRAIN_PATH


def test_every_file_and_folder_of_the_configuration_is_the_callers(recorder: Recorder) -> None:
    named = {key: value for key, value in flatten_config(load_config()).items() if isinstance(value, str)}
    keys = [key for key in named if key.endswith(("_PATH", "_DIR")) and key != "LOG_DIR"]
    recorder.run(SCRIPTS / "market1501/train_ctl_model_s_r50.sh", *(part for key in keys for part in (key, "here/it")))
    config = flatten_config(recorder.config())
    assert {key: config[key] for key in keys} == dict.fromkeys(keys, str(recorder.folder / "here/it"))


@pytest.mark.parametrize("form", [["--config_file", "mine.yml"], ["--config_file=mine.yml"]])
def test_another_config_file_may_be_named(form: list[str], recorder: Recorder) -> None:
    (recorder.folder / "mine.yml").write_text("MODEL: {NAME: resnet18}\n")
    recorder.run(SCRIPTS / "market1501/train_ctl_model_s_r50.sh", *form)
    config = recorder.config()
    assert (config.MODEL.NAME, config.SOLVER.IMS_PER_BATCH) == ("resnet18", 16)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_ends_with_the_status_of_the_program(name: str, recorder: Recorder) -> None:
    assert recorder.run(SCRIPTS / name, RECORDER_STATUS="3").returncode == 3
    assert recorder.run(SCRIPTS / name, PYTHON="/no/such/python").returncode == 127


def test_it_runs_in_a_repository_whose_path_has_spaces(recorder: Recorder) -> None:
    copy = recorder.folder / "my code"
    shutil.copytree(SCRIPTS, copy / "train_scripts")
    assert recorder.run(copy / "train_scripts/df1/train_ctl_model_s_r50.sh").returncode == 0
    assert recorder.called()[0] == copy
