"""DATASETS.ON_ERROR skip: batches stay P x K and repeatable, and all workers together warn of a file once."""

import logging

import pytest
import torch
from PIL import Image

from datasets.draws import PidDraw
from datasets.loading import (
    UNREADABLE,
    BaseDatasetLabelled,
    BaseDatasetLabelledPerPid,
    LateStartLoader,
    explain_worker_death,
)
from datasets.transforms.build import eval_transforms
from utils.errors import UserError

TRANSFORM = eval_transforms((4, 2), [0.0] * 3, [1.0] * 3)


@pytest.fixture
def samples(tmp_path):
    """Identity 0 with six images, grey levels 10 to 60, two of them damaged; identity 1 with none that is whole."""
    made = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (2, 4), (10 * (number + 1),) * 3).save(path)
        if number in (1, 4, 6, 7):
            path.write_bytes(b"no picture")
        made.append((str(path), int(number >= 6), 0, number))
    return made


def per_pid(samples):
    groups = {pid: [sample for sample in samples if sample[1] == pid] for pid in (0, 1)}
    return BaseDatasetLabelledPerPid(groups, TRANSFORM, num_instances=4, resample=True)


def skipping(dataset):
    dataset.apply_settings(skip_unreadable=True)
    return dataset


@pytest.mark.parametrize("epoch", range(4))
def test_another_image_of_the_identity_takes_the_place(samples, epoch):
    dataset = skipping(per_pid(samples))
    for occurrence in (0, 1):
        rows = dataset[PidDraw(0, epoch, occurrence)]
        numbers = [row[3] for row in rows]
        assert len(rows) == 4
        assert set(numbers) <= {0, 2, 3, 5}
        assert all(row[4] for row in rows)
        for image, pid, _, number, _ in rows:
            assert pid == 0
            assert torch.allclose(image, torch.tensor((number + 1) * 10 / 255))
        assert [row[3] for row in skipping(per_pid(samples))[PidDraw(0, epoch, occurrence)]] == numbers


def test_an_identity_without_a_readable_image_is_blank(samples):
    rows = skipping(per_pid(samples))[PidDraw(1, 0, 0)]
    assert [(row[1], row[3], row[4]) for row in rows] == [(1, -1, False)] * 4
    assert all(row[0].shape == (3, 4, 2) and not row[0].any() for row in rows)


def test_without_skipping_the_file_is_named(samples):
    with pytest.raises(UserError, match=r"[67]\.png cannot be read"):
        per_pid(samples)[PidDraw(1, 0, 0)]
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        BaseDatasetLabelled(samples, TRANSFORM)[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_marks_what_it_leaves_out_and_each_file_is_warned_of_once(samples, workers, tmp_path):
    log = tmp_path / "log"
    handler = logging.FileHandler(log)  # worker processes append to the same file
    logging.getLogger("datasets.loading").addHandler(handler)
    try:
        dataset = skipping(BaseDatasetLabelled(samples, TRANSFORM))
        loader = LateStartLoader(dataset, batch_size=3, num_workers=workers, persistent_workers=workers > 0)
        for _ in range(3):
            images, pids, _, numbers = (torch.cat(parts) for parts in zip(*loader, strict=True))
            assert numbers.tolist() == list(range(8))
            assert images.shape == (8, 3, 4, 2)
            assert [n for n, pid in enumerate(pids.tolist()) if pid == UNREADABLE] == [1, 4, 6, 7]
    finally:
        logging.getLogger("datasets.loading").removeHandler(handler)
        handler.close()
    lines = log.read_text().splitlines()
    assert sorted(line.split()[2][-5:] for line in lines) == ["1.png", "4.png", "6.png", "7.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "worker 12, was killed (Killed)"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "worker 12, 13, ended unexpectedly"),
        ("CUDA out of memory", None),
    ],
)
def test_what_torch_says_of_dead_workers(text, expected):
    said = explain_worker_death(RuntimeError(text))
    assert said is None if expected is None else expected in said
