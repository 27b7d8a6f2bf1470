"""Several processes and machines on the toy set: what they draw, log and write, and that they find the same metrics."""

import json
import subprocess

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import workers
from tests.e2e.test_training import assert_same_state
from tests.launch import free_port, run_processes, start_python
from tests.small import small_options
from tests.support import ROOT
from tests.thin import THIN

pytestmark = pytest.mark.slow  # a training by several processes, and one by two machines

TRAINING = {
    "SOLVER.DIST_BACKEND": "ddp_cpu",
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.USE_RESAMPLING": False,
    # No augmentation: the sum of its pixels tells which image it is.
    "INPUT.PROB": 0.0,
    "INPUT.RE_PROB": 0.0,
    "INPUT.PADDING": 0,
    "TEST.IMS_PER_BATCH": 8,
}
# Uneven shares; and one batch, so that all processes but one have nothing to embed.
EVALUATIONS = {
    "shares": {"TEST.IMS_PER_BATCH": 7},
    "one batch": {"TEST.IMS_PER_BATCH": 128, "TEST.RERANK": True, "TEST.RERANK_K1": 4, "TEST.RERANK_K2": 2},
}


def as_list(toy, **options):
    return small_options(**THIN | {"DATASETS.ROOT_DIR": str(toy)} | options)


def options_of_tests(checkpoint, toy, folder, count):
    """Options of each test by ``count`` processes."""
    common = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(checkpoint), "GPU_IDS": list(range(count))}
    common |= {"SOLVER.DIST_BACKEND": "ddp_cpu"}
    return [
        as_list(toy, **common, **more, OUTPUT_DIR=str(folder / name / str(count))) for name, more in EVALUATIONS.items()
    ]


def writers_of_events(version):
    """The numbers of the processes that wrote to TensorBoard."""
    return {path.name.split(".")[-2] for path in version.glob("events.*")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return folder / "out/train/version_0/auto_checkpoints/checkpoint_1.pth"


@pytest.fixture(scope="module")
def two(toy, folder, checkpoint):
    """What each of two processes noted in a training, what it reached, and what it found in the tests after it."""
    options = as_list(toy, **TRAINING | {"GPU_IDS": [0, 1], "OUTPUT_DIR": str(folder / "out")})
    return run_processes(
        workers.train_and_test, 2, folder / "two", options, options_of_tests(checkpoint, toy, folder, 2), timeout=500
    )


def test_every_process_draws_images_of_its_own(two):
    epochs = {}
    for notes, _, _ in two:
        for epoch, rows in notes["steps"]:
            assert len({pid for _, pid in rows}) == 2  # IMS_PER_BATCH of each process
            epochs.setdefault(epoch, []).append(rows)
    assert epochs.keys() == {0, 1}
    for batches in epochs.values():
        drawn = [row for rows in batches for row in rows]
        assert len(set(drawn)) == len(drawn)  # no image twice, in either process
    one, other = (notes["steps"] for notes, _, _ in two)
    assert len(one) == len(other)


def test_logged_losses_and_distances_are_means_over_the_processes(two, checkpoint):
    events = EventAccumulator(str(checkpoint.parent.parent))
    events.Reload()
    names = {"loss": "epoch_train_loss", "step_dist_ap": "epoch_dist_ap", "step_dist_an": "epoch_dist_an"}
    own = [notes["own_means"] for notes, _, _ in two]
    assert {"query_xent", "centroid_triplet", "l2_mean_centroid", *names} <= own[0][0].keys()
    for name in own[0][0]:
        logged = [event.value for event in events.Scalars(names.get(name, name))]
        assert own[0][0][name] != own[1][0][name]
        assert logged == pytest.approx([(a[name] + b[name]) / 2 for a, b in zip(*own, strict=True)], rel=1e-5)


@pytest.mark.parametrize("kind", ["OwnLoader", "OwnDatasets"])
def test_data_sets_filled_by_hand_are_put_together_by_position(two, toy, folder, checkpoint, kind):
    """Their fourth entries are words."""
    del two  # has written the checkpoint
    program, found = str(ROOT / "tests/programs/data_training.py"), []
    for count in (1, 2):
        more = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(checkpoint), "DATASETS.NAMES": "of_program"}
        more |= {"GPU_IDS": list(range(count)), "SOLVER.DIST_BACKEND": "ddp_cpu", "TEST.IMS_PER_BATCH": 7}
        options = as_list(toy, **more, OUTPUT_DIR=str(folder / kind / str(count)))
        place = folder / f"{kind}_{count}"
        found += run_processes(workers.evaluate_program, count, place, program, kind, options, timeout=300)
    for metrics in found[1:]:
        assert metrics["instances"] == pytest.approx(found[0]["instances"], abs=1e-6)


def test_a_model_of_others_may_have_a_parameter_without_gradient(toy, tmp_path):
    options = {"GPU_IDS": [0, 1], "SOLVER.EVAL_PERIOD": 2, "OUTPUT_DIR": str(tmp_path / "out")}  # steps, no evaluation
    found = run_processes(workers.train_unused, 2, tmp_path / "run", as_list(toy, **TRAINING | options))
    assert found[0]["instances"]["mAP"] == found[1]["instances"]["mAP"] > 0


def test_one_process_writes(two, folder):
    (version,) = (folder / "out" / "train").iterdir()
    assert version.name == "version_0"
    assert len(writers_of_events(version)) == 1
    assert len(list((version / "auto_checkpoints").iterdir())) == 1


def test_all_processes_validate_the_network_that_is_saved(two, checkpoint):
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]["bn.running_mean"]
    for notes, _, _ in two:
        assert torch.equal(notes["buffers_seen"][-1], saved)


def test_one_two_and_three_processes_find_the_same(two, toy, folder, checkpoint):
    _, _, alone = workers.train_and_test(None, options_of_tests(checkpoint, toy, folder, 1))
    three = run_processes(
        workers.train_and_test, 3, folder / "three", None, options_of_tests(checkpoint, toy, folder, 3), timeout=500
    )
    for _, _, found in (*two, *three):
        for metrics, expected in zip(found, alone, strict=True):
            for kind in ("instances", "centroids"):
                assert metrics[kind] == pytest.approx(expected[kind], abs=1e-6)
    for name in EVALUATIONS:
        written = [folder / name / str(count) / "evaluation" for count in (1, 2, 3)]
        assert len({(place / "per_query.csv").read_text() for place in written}) == 1, name
        first, *others = (json.loads((place / "metrics.json").read_text()) | {"command": ""} for place in written)
        assert others == [first, first], name  # the commands differ


def test_a_validation_while_training_equals_a_test_of_the_checkpoint(two, toy, folder, checkpoint):
    options = as_list(
        toy, **{"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(checkpoint)}, OUTPUT_DIR=str(folder / "v")
    )
    _, _, (tested,) = workers.train_and_test(None, [[*options, "TEST.IMS_PER_BATCH", 8]])
    for notes, trained, _ in two:
        validated = [metrics for metrics in notes["logged"] if "mINP" in metrics][-1]
        assert validated == pytest.approx({name: tested["instances"][name] for name in validated}, abs=1e-6)
        strict = {name: value for name, value in trained["centroids"].items() if name.startswith("strict")}
        assert strict == pytest.approx({name: tested["centroids"][name] for name in strict}, abs=1e-6)


@pytest.mark.by_hand
def test_two_machines_train_as_one_with_two_processes(two, toy, folder, checkpoint, tmp_path):
    """Two torchrun agents on loopback, the real script; the weights are equal bit for bit."""
    nodes = {"GPU_IDS": "[0]", "TRAINER.NUM_NODES": 2, "OUTPUT_DIR": str(tmp_path / "out")}
    options = as_list(toy, **TRAINING | nodes)
    port = str(free_port())
    agents = []
    for node in (0, 1):
        agent = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node), "--master-addr", "127.0.0.1"]
        command = ["-m", "torch.distributed.run", *agent, "--master-port", port]
        command += [ROOT / "train_ctl_model.py", *options]
        environment = {"OMP_NUM_THREADS": "1"}
        agents.append(start_python(*command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE))
    try:
        outputs = [agent.communicate(timeout=300)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)
    (version,) = (tmp_path / "out" / "train_ctl_model").iterdir()
    assert_same_state(checkpoint, version / "auto_checkpoints" / "checkpoint_1.pth")
    assert len(writers_of_events(version)) == 1
    assert sum("validation, single images" in output for output in outputs) == 1
