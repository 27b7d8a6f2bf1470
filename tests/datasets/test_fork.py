"""A fork's own files of the data sets in the place of ours, in a copy of the project; and a copy inside a package."""

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.launch import run_code, run_script
from tests.small import small_options
from tests.support import ROOT
from tests.thin import THIN

FORK = ROOT / "tests" / "programs" / "fork"
ROOMS = "callbacks checkpoints config datasets engine evaluation losses modelling solver utils"
NAMES = ("market1501", "dukemtmcreid", "df1", "street2shop")
LOSSES = ("epoch_train_loss", "query_xent", "query_triplet", "query_center", "centroid_triplet")
# One training after the other in one process.
TRAIN = """
import sys
from config.load import load_config
from train_ctl_model import CTLModel
from utils.misc import run_main
options, names = eval(sys.argv[1]), sys.argv[2].split()
for name in names:
    more = ["DATASETS.NAMES", name, "OUTPUT_DIR", f"{sys.argv[3]}/{name}"]
    if name in ("df1", "street2shop"):
        more += ["DATASETS.ROOT_DIR", sys.argv[4], "DATASETS.JSON_TRAIN_PATH", f"{sys.argv[4]}/train_coco_reid.json"]
    run_main(load_config("", options + more), CTLModel, "run")
import datasets
print(*datasets.get_names() if hasattr(datasets, "get_names") else (), datasets.__file__)
"""


def draw(folder, *options):
    done = run_script("scripts/make_toy_dataset.py", folder, "--ids", 12, "--size", 32, 16, *options)
    assert done.returncode == 0, done.stderr
    return folder


def copy_project(folder):
    for room in ROOMS.split():
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_ctl_model.py", folder)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "thin.py", folder / "tests")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Drawn data sets in both layouts, and a copy of the project with the fork's data sets."""
    folder = tmp_path_factory.mktemp("fork")
    market = draw(folder / "market", "--cameras", 3, "--images-per-id", 6)
    shutil.copytree(market / "market1501", market / "DukeMTMC-reID", ignore=shutil.ignore_patterns("-1*"))
    coco = draw(folder / "coco", "--images-per-id", 6, "--layout", "coco")
    project = copy_project(folder / "project")
    for file in FORK.glob("*.py"):
        shutil.copy(file, project / "datasets")
    return folder, market, coco, project


def train(places, project, out):
    folder, market, coco, _ = places
    options = small_options(**THIN, **{"DATASETS.ROOT_DIR": str(market), "SOLVER.MAX_EPOCHS": 1})
    done = run_code(TRAIN, options, " ".join(NAMES), folder / out, coco, cwd=project, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for name in NAMES:
        events = EventAccumulator(str(folder / out / name / "run" / "version_0"))
        events.Reload()
        found[name] = {loss: events.Scalars(loss)[0].value for loss in LOSSES}
    return found, done.stdout.splitlines()[-1]


@pytest.mark.slow  # eight trainings
def test_the_data_sets_of_a_fork_train_as_ours(places):
    project = places[-1]
    found, said = train(places, project, "fork")
    assert said == f"market1501 dukemtmcreid df1 street2shop {project / 'datasets/__init__.py'}"
    expected, said = train(places, ROOT, "ours")
    assert said.endswith(str(ROOT / "datasets/__init__.py"))
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], abs=1e-3), name


def test_they_can_be_validated(places, tmp_path):
    _, market, _, project = places
    arguments = [*small_options(**THIN, **{"DATASETS.ROOT_DIR": str(market)}), "OUTPUT_DIR", str(tmp_path)]
    code = "import sys; from datasets.validate import main; sys.exit(main(sys.argv[1:]))"
    done = run_code(code, *arguments, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "errors: none" in done.stdout
    assert "Identities of training and test are not compared" in done.stdout


def test_a_copy_inside_a_package_imports_what_needs_no_root(tmp_path):
    copy_project(tmp_path / "app" / "libs" / "centroids_reid")
    code = """
import sys
from app.libs.centroids_reid.config.defaults import _C
from app.libs.centroids_reid.config import cfg
from app.libs.centroids_reid.datasets.transforms import RandomErasing, ReidTransforms
from PIL import Image
assert cfg is _C
assert ReidTransforms(_C).build_transforms(is_train=True)(Image.new("RGB", (9, 9))).shape == (3, 256, 128)
assert not {"config", "datasets", "utils"} & set(sys.modules)
"""
    done = run_code(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
