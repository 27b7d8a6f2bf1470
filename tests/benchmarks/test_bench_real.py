"""The benchmark on images of one's own: its statistics, what it keeps when it is stopped, and a small run."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from benchmarks import bench_real
from benchmarks.bench_real import METRICS, STUDENT, Run, compare, finished_runs, measure, parse, plan, summarise
from engine.run import run_main
from modelling.backbones import NetworkOptions, get_backbone
from scripts.make_toy_dataset import main as draw
from tests.small import small_config
from utils.errors import UserError


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of drawn people, without cameras."""
    folder = tmp_path_factory.mktemp("people")
    draw([str(folder / "data"), "--layout", "folder", "--ids", "16", "--images-per-id", "6", "--size", "32", "16"])
    rows = [
        (path.relative_to(folder), path.parent.name, path.parent.parent.name)
        for path in sorted((folder / "data").glob("*/*/*.jpg"))
    ]
    with (folder / "people.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "pid", "split"), *rows])
    return folder / "people.csv"


def test_a_stopped_benchmark_has_whole_pairs() -> None:
    names = [run.name for run in plan(2, has_weights=True)]
    assert names[0] == "none/pretrained/0"
    assert names[1:6] == [
        "none/random/0", "baseline/random/0", "ctl/random/0", "baseline/pretrained/0", "ctl/pretrained/0",
    ]  # fmt: skip
    assert names[6:] == [name.replace("/0", "/1") for name in names[1:6]]
    assert [run.name for run in plan(1, has_weights=False)] == ["none/random/0", "baseline/random/0", "ctl/random/0"]


def test_differences_are_taken_seed_by_seed() -> None:
    ours, theirs = {0: 0.5, 1: 0.6, 2: 0.4, 3: 0.9}, {2: 0.45, 1: 0.55, 0: 0.4, 7: 0.0}
    found = compare(ours, theirs)
    assert found is not None
    assert found["values"] == pytest.approx([0.1, 0.05, -0.05])
    assert (found["mean"], found["min"], found["max"]) == pytest.approx((0.1 / 3, -0.05, 0.1))
    assert found["sd"] == pytest.approx(statistics.stdev([0.1, 0.05, -0.05]))
    assert found["above_zero"] == 2
    half = 4.303 * found["sd"] / 3**0.5
    assert found["interval"] == pytest.approx([0.1 / 3 - half, 0.1 / 3 + half])


def test_one_seed_has_no_spread_and_no_pair_no_difference() -> None:
    found = compare({0: 0.5}, {0: 0.5})
    assert found is not None
    assert (found["mean"], found["sd"], found["interval"], found["above_zero"]) == (0, None, None, 0)
    assert compare({0: 0.5}, {1: 0.5}) is None


def test_students_t() -> None:
    for freedom, value in enumerate(STUDENT, 1):
        assert value == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)
    many = {seed: seed / 100 for seed in range(40)}
    found = compare(many, dict.fromkeys(many, 0.0))
    assert found is not None
    assert found["interval"][1] - found["mean"] == pytest.approx(2.086 * found["sd"] / 40**0.5)


def result(value: float) -> dict[str, Any]:
    return {metric: value + i / 10 for i, metric in enumerate(METRICS)} | {"seconds": 1.0}


def test_the_summary() -> None:
    runs = {"none/pretrained/0": result(0.1), "ctl/random/0": result(0.3), "ctl/random/1": result(0.5)}
    summary = summarise(runs)
    assert summary["ctl_minus_baseline"] == {}
    assert set(summary["means"]) == {"none/pretrained", "ctl/random"}
    found = summary["means"]["ctl/random"]["rank1"]
    assert (found["mean"], found["sd"]) == pytest.approx((0.5, 0.2 / 2**0.5))
    assert summary["means"]["none/pretrained"]["mAP"]["sd"] is None
    pairs = summarise(runs | {"baseline/random/1": result(0.6)})["ctl_minus_baseline"]
    assert set(pairs) == {"random"}
    assert pairs["random"]["centroid_mAP"]["values"] == pytest.approx([-0.1])


def test_a_stopped_benchmark_goes_on(tmp_path: Path) -> None:
    out, settings = tmp_path / "a" / "real.json", {"size": (32, 16), "opts": []}
    carried_out: list[str] = []

    def execute(run: Run) -> dict[str, Any]:
        if len(carried_out) == 3:
            raise KeyboardInterrupt
        carried_out.append(run.name)
        return result(0.1 * len(carried_out))

    def benchmark(seeds: int) -> None:
        measure(plan(seeds, True), {"settings": settings, "runs": finished_runs(out, settings)}, out, execute)

    with pytest.raises(KeyboardInterrupt):
        benchmark(1)
    first = json.loads(out.read_text())
    assert list(first["runs"]) == carried_out == ["none/pretrained/0", "none/random/0", "baseline/random/0"]
    assert first["means"]["baseline/random"]["mAP"]["mean"] == pytest.approx(0.3)
    carried_out.clear()
    with pytest.raises(KeyboardInterrupt):
        benchmark(2)
    assert carried_out == ["ctl/random/0", "baseline/pretrained/0", "ctl/pretrained/0"]
    second = json.loads(out.read_text())
    assert second["runs"].items() > first["runs"].items()
    assert set(second["ctl_minus_baseline"]) == {"random", "pretrained"}


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "real.json"
    out.write_text(json.dumps({"settings": {"epochs": 8, "lr": 0.1}, "runs": {"none/random/0": {}}}))
    assert finished_runs(out, {"epochs": 8, "lr": 0.1}) == {"none/random/0": {}}
    assert finished_runs(tmp_path / "new.json", {"epochs": 8}) == {}
    with pytest.raises(UserError) as raised:
        finished_runs(out, {"epochs": 9, "opts": []})
    assert str(raised.value) == (
        f"{out} holds runs with other settings (epochs 8, here 9; lr 0.1, here None; opts None, here []): name another "
        "file with --out, or delete this one."
    )
    for text in ("{", "[]", '{"runs": {}}', '{"settings": 1, "runs": {}}'):
        out.write_text(text)
        with pytest.raises(UserError, match="is no report of this benchmark: name another file with --out"):
            finished_runs(out, {})


def test_settings_tell_files_by_their_contents(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,pid,split\n")
    arguments = ["--csv", str(tmp_path / "t.csv"), "--size", "64", "32", "SOLVER.MARGIN", "0.3"]
    first = bench_real.settings_of(parse(arguments))
    assert first["csv"] == {"name": "t.csv", "digest": first["csv"]["digest"]}
    assert (first["weights"], first["opts"]) == (None, ["SOLVER.MARGIN", "0.3"])
    assert (first["MODEL.NAME"], first["INPUT.SIZE_TEST"]) == ("torchvision:mobilenet_v2", [64, 32])
    assert str(tmp_path) not in json.dumps(first)
    (tmp_path / "t.csv").write_text("path,pid,split\na.jpg,1,train\n")
    assert bench_real.settings_of(parse(arguments))["csv"]["digest"] != first["csv"]["digest"]
    with pytest.raises(UserError, match="none.pth is not a file"):
        bench_real.settings_of(parse([*arguments[:2], "--weights", str(tmp_path / "none.pth")]))


@pytest.mark.by_hand
def test_pairs_start_alike_and_see_the_same_batches(table: Path, tmp_path: Path) -> None:
    seen: dict[str, list[list[float]]] = {}
    for name, method in bench_real.METHODS.items():

        class Watched(method):  # type: ignore[misc, valid-type]
            def training_step(self, batch: Any, batch_idx: int, kept: Any = seen.setdefault(name, [])) -> Any:  # noqa: B008
                if self.trainer.global_step == 0:
                    kept.append([float(parameter.detach().sum()) for parameter in self.parameters()])
                kept.append([float(batch[0].sum()), *batch[1].tolist()])
                return super().training_step(batch, batch_idx)

        cfg = small_config(
            **{"DATASETS.NAMES": "csv", "DATASETS.CSV_PATH": str(table), "DATASETS.ROOT_DIR": ""},
            **{"OUTPUT_DIR": str(tmp_path / name), "SOLVER.MAX_EPOCHS": 1, "REPRODUCIBLE_SEED": 5},
        )
        run_main(cfg, Watched, "train")
    assert seen["baseline"] == seen["ctl"]
    assert len(seen["ctl"]) > 2


@pytest.mark.by_hand
def test_a_small_run(table: Path, tmp_path: Path, run_here: Any, check_table: Any) -> None:
    torch.manual_seed(7)
    torch.save(get_backbone("resnet18").build(NetworkOptions(1)).state_dict(), tmp_path / "w.pth")
    small = ("--network", "resnet18", "--size", 32, 16, "--seeds", 1, "--epochs", 1, "--identities", 3, "--threads", 1)
    report = run_here(bench_real, "--csv", table, "--weights", tmp_path / "w.pth", *small, "INPUT.PADDING", 2)
    assert list(report["runs"]) == [run.name for run in plan(1, True)]
    for one in report["runs"].values():
        assert all(0 < one[metric] <= 1 for metric in METRICS)
    assert report["runs"]["none/random/0"]["mAP"] != report["runs"]["none/pretrained/0"]["mAP"]
    evaluation = report["runs"]["ctl/random/0"]["evaluation"]
    assert (evaluation["same_camera_filter"], evaluation["queries"] > 0) == (False, True)
    assert report["settings"]["opts"] == ["INPUT.PADDING", "2"]
    check_table("real", report)
    check_table("real_pairs", report, 8)  # one seed has no interval
