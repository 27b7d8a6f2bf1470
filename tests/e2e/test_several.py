"""Several runs, and several test sets: what each keeps, and what is said of all of them."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.run import run_main
from tests import workers
from tests.e2e import forked
from tests.e2e.test_data_sets import newest
from tests.launch import run_processes
from train_ctl_model import CTLModel

TWO = {"REPRODUCIBLE_NUM_RUNS": 2, "SOLVER.MAX_EPOCHS": 1}


def read(path):
    return json.loads(path.read_text())


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def test_each_run_keeps_its_evaluation_and_a_summary_says_mean_and_spread(tiny_cfg, tmp_path, caplog):
    run_main(tiny_cfg(**TWO), CTLModel, "run")
    kept = tmp_path / "out" / "evaluation"
    first, second = (read(kept / f"run_{number}" / "metrics.json") for number in (0, 1))
    assert first["run"] == {"number": 0, "seed": 0}
    for name in ("metrics.json", "per_query.csv"):
        assert (kept / name).read_bytes() == (kept / "run_1" / name).read_bytes()
    summary = read(kept / "summary.json")
    assert (summary["runs"], summary["seeds"]) == ([0, 1], [0, 1])
    assert not {"trained_on", "left_out"} & {*summary, *first}
    for kind, protocol, prefix in (("instances", "instance", ""), ("centroids", "centroid_strict", "strict_")):
        values = [run["protocols"][protocol]["mAP"] for run in (first, second)]
        found = summary[kind][f"{prefix}mAP"]
        assert found["values"] == values
        assert (found["mean"], found["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        logged = scalars(tmp_path / "out" / "run" / "summary")
        assert logged[f"summary/{kind}/{prefix}mAP_mean"] == pytest.approx(found["mean"])
        assert logged[f"summary/{kind}/{prefix}mAP_std"] == pytest.approx(found["std"])
    said = [line for line in caplog.messages if line.startswith("2 runs, ")]
    assert [line.partition(" (mean ±")[0] for line in said] == [
        "2 runs, single images", "2 runs, centroids, strict protocol", "2 runs, centroids, published protocol",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sequence_that_is_stopped_keeps_its_runs_and_goes_on_to_a_summary_of_all(tiny, tmp_path):
    auto = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": "auto"}
    kept, log = tmp_path / "out" / "evaluation", tmp_path / "log"
    assert forked.run(tiny(**TWO | auto), log, "SIGTERM:15") == [0]
    assert log.read_text().count("SIGTERM: stopped.") == 1
    assert {path.name for path in kept.iterdir()} == {"run_0", "metrics.json", "per_query.csv"}
    first = read(kept / "run_0" / "metrics.json")
    assert set(first["protocols"]) == {"instance", "centroid", "centroid_strict"}
    assert forked.run(tiny(**TWO | auto), log) == [0]
    values = [read(kept / f"run_{number}" / "metrics.json")["protocols"]["instance"]["mAP"] for number in (0, 1)]
    assert values[0] == first["protocols"]["instance"]["mAP"]
    assert read(kept / "summary.json")["instances"]["mAP"]["values"] == values


def test_each_test_set_has_its_numbers_and_a_matrix_ends_the_run(two_sets, tiny_cfg, tmp_path, caplog):
    options = {"DATASETS.ROOT_DIR": str(two_sets), "SOLVER.MAX_EPOCHS": 1, "DATASETS.COMBINEALL": True}
    tests = {"DATASETS.TESTS": "dukemtmcreid+market1501", "TEST.VISUALIZE": "yes"}
    (metrics,) = run_main(tiny_cfg(**options, **tests), CTLModel, "run")
    out, kept = tmp_path / "out", tmp_path / "out" / "evaluation"
    assert metrics["instances"] == metrics["dukemtmcreid/instances"] != metrics["market1501/instances"]
    assert {path.name for path in kept.iterdir()} == {
        "metrics.json", "per_query.csv", "matrix.json", "dukemtmcreid", "market1501",
    }  # fmt: skip
    assert not (out / "run" / "summary").exists()
    duke, market = (read(kept / name / "metrics.json") for name in ("dukemtmcreid", "market1501"))
    assert read(kept / "metrics.json") == duke
    assert (duke["settings"]["data_set"], duke["trained_on"]) == ("dukemtmcreid", "market1501")
    assert "run" not in duke
    assert "caveat" not in duke
    assert market["caveat"] == "mAP and Top-k are those of images that were trained on, by DATASETS.COMBINEALL."
    matrix = read(kept / "matrix.json")
    assert (matrix["trained_on"], matrix["tested_on"]) == (["market1501"], ["dukemtmcreid", "market1501"])
    expected = [duke["protocols"]["instance"]["mAP"], market["protocols"]["instance"]["mAP"]]
    assert matrix["instances"]["mAP"] == [expected]
    logged = scalars(out / "run" / "version_0")
    assert logged["market1501/test_instances/mAP"] == pytest.approx(expected[1])
    assert "test_instances/mAP" not in logged
    lines = [line.partition(" (")[0] for line in caplog.messages if ", test, single images" in line]
    assert lines == ["dukemtmcreid, test, single images", "market1501, test, single images"]
    assert sum("DATASETS.COMBINEALL: " in line for line in caplog.messages) == 1
    assert sum(line.startswith("Market1501:\n") for line in caplog.messages) == 1  # read once
    (validation,) = [line for line in caplog.messages if line.startswith("validation, ")]
    assert validation.endswith("(those of images that were trained on, by DATASETS.COMBINEALL)")
    assert (out / "visrank" / "index.html").is_file()
    assert (out / "visrank" / "market1501" / "index.html").is_file()
    # The sets are those of tests one by one; what they were trained on is told by the checkpoint.
    saved = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(newest(out)), "DATASETS.ROOT_DIR": str(two_sets)}
    for name, found, cautious in (("dukemtmcreid", duke, False), ("market1501", market, True)):
        run_main(tiny_cfg(**saved, **{"DATASETS.NAMES": name, "OUTPUT_DIR": str(tmp_path / name)}), CTLModel, "run")
        alone = read(tmp_path / name / "evaluation" / "metrics.json")
        assert alone["protocols"] == found["protocols"]
        assert ("caveat" in alone and "COMBINEALL" in alone["caveat"]) == cautious
    caplog.clear()
    run_main(
        tiny_cfg(**saved, **tests, **{"DATASETS.NAMES": "veri776", "OUTPUT_DIR": str(tmp_path / "test")}),
        CTLModel,
        "run",
    )
    assert read(tmp_path / "test" / "evaluation" / "matrix.json")["instances"] == matrix["instances"]
    assert sum(line.startswith("test of ") for line in caplog.messages) == 1


@pytest.mark.by_hand
def test_several_processes_write_the_same(two_sets, tiny, tmp_path):
    """The real network: both sets are tested twice by one, two and three processes."""
    options = {"DATASETS.ROOT_DIR": str(two_sets), "SOLVER.DIST_BACKEND": "ddp_cpu", "TEST.IMS_PER_BATCH": 4}
    workers.train_and_test(tiny(**options, **{"SOLVER.MAX_EPOCHS": 1}), [])
    options |= {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(newest(tmp_path / "out"))}
    options |= {"DATASETS.TESTS": "market1501+dukemtmcreid", "REPRODUCIBLE_NUM_RUNS": 2}
    written = []
    for count in (1, 2, 3):
        place = {"OUTPUT_DIR": str(tmp_path / str(count)), "GPU_IDS": list(range(count))}
        tests = [tiny(**options | place)]
        if count == 1:
            workers.train_and_test(None, tests)
        else:
            run_processes(workers.train_and_test, count, tmp_path / f"run_{count}", None, tests, timeout=300)
        kept = tmp_path / str(count) / "evaluation"
        written.append([{**read(kept / name), "command": ""} for name in ("matrix.json", "dukemtmcreid/summary.json")])
    assert written[0] == written[1] == written[2]
    assert written[0][1]["instances"]["mAP"]["std"] == 0  # the same file twice
