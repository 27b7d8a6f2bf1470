"""Items and batches: what they hold, and that they depend on the draw alone."""

import gc
import itertools
import multiprocessing
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from config.load import load_config
from datasets import init_dataset
from datasets.bases import BaseDatasetLabelled, BaseDatasetLabelledPerPid, collate_fn_alternative
from datasets.draws import (
    PidDraw,
    derive_seed,
    draw_images,
    order_substitutes,
    resample_images,
    seeded_globals,
)
from datasets.loading import LateStartLoader, Sample
from datasets.samplers import RandomIdentitySampler
from tests.datasets.conftest import AUGMENTED, write_image
from utils.errors import UserError


def noisy(image):
    """A transform that draws from both global generators."""
    return torch.full((3, 2, 2), random.random()) + torch.rand(3, 2, 2)


@pytest.fixture
def samples(tmp_path):
    """{pid: samples} with 2 to 7 images of an identity."""
    data: dict[int, list[Sample]] = {}
    number = 0
    for pid, count in enumerate([4, 7, 2, 3, 5, 6]):
        data[pid] = []
        for camid in range(count):
            data[pid].append((str(write_image(tmp_path / f"{number}.jpg", number)), pid, camid, number))
            number += 1
    return data


def make_dataset(samples, resample=False, seed=0):
    return BaseDatasetLabelledPerPid(samples, noisy, num_instances=3, resample=resample, seed=seed)


@settings(max_examples=80)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.integers(0, 1000))
def test_an_epoch_uses_every_image_once(count, size, seed, epoch, pid):
    occurrences = [draw_images(count, size, seed, epoch, pid, o) for o in range(-(-count // size))]
    assert sorted(itertools.chain(*occurrences)) == list(range(count))
    assert all(len(chosen) == size for chosen in occurrences[:-1])
    with pytest.raises(IndexError):
        draw_images(count, size, seed, epoch, pid, len(occurrences))


@pytest.mark.parametrize("changed", ["seed", "epoch", "pid"])
def test_the_order_of_images_changes_with_seed_epoch_and_identity(changed):
    key = {"seed": 0, "epoch": 0, "pid": 0}
    assert draw_images(20, 20, **(key | {changed: 1}), occurrence=0) != draw_images(20, 20, **key, occurrence=0)


def test_images_drawn_again_may_be_any_and_may_repeat():
    drawn = [resample_images(4, 3, 0, epoch, 5, 0) for epoch in range(50)]
    assert {position for positions in drawn for position in positions} == {0, 1, 2, 3}
    assert any(len(set(positions)) < 3 for positions in drawn)


def test_any_other_image_may_stand_for_one_in_an_order_of_its_own():
    orders = [order_substitutes(6, position, 1, 2, 3, 4) for position in range(6)]
    for position, order in enumerate(orders):
        assert sorted(order) == [other for other in range(6) if other != position]
    assert orders[0] == order_substitutes(6, 0, 1, 2, 3, 4) != order_substitutes(6, 0, 9, 2, 3, 4)
    assert order_substitutes(1, 0, 1, 2, 3, 4) == []


def test_derived_seeds_are_the_same_on_every_machine_and_differ_by_purpose():
    # Written down once: another value means that runs can no longer be repeated.
    assert derive_seed("order", 0, 1, 2) == 7756642022247485651
    assert derive_seed("augment", 0, 1, 2) != derive_seed("order", 0, 1, 2)
    assert derive_seed("order", 1, 23) != derive_seed("order", 12, 3)
    assert 0 <= derive_seed("order", -5, 2**70) < 2**63


def test_seeded_globals_restores_both_generators_even_after_an_error():
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), torch.rand(3)
    random.seed(1)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError), seeded_globals(7):
        random.random()
        torch.rand(1)
        raise RuntimeError
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(3), expected[1])


@pytest.mark.parametrize("resample", [True, False])
def test_an_item_is_k_rows_of_one_identity(samples, resample):
    dataset = make_dataset(samples, resample=resample)
    for pid, images in samples.items():
        numbers = []
        for occurrence in range(-(-len(images) // 3)):
            rows = dataset[PidDraw(pid, 4, occurrence)]
            real = min(3, len(images) - 3 * occurrence)
            assert len(rows) == 3
            assert {row[1] for row in rows} == {pid}
            assert [row[4] for row in rows] == [True] * 3 if resample else [True] * real + [False] * (3 - real)
            numbers += [row[3] for row in rows[:real]]
            for image, _, camid, number, is_real in rows:
                if is_real:
                    assert (camid, number) in [sample[2:] for sample in images]
                else:
                    assert (camid, number) == (rows[0][2], -1)
                    assert torch.equal(image, torch.zeros(3, 2, 2))
        assert sorted(numbers) == [sample[3] for sample in images]


def test_augmentation_differs_between_draws_and_between_rows(samples):
    dataset = make_dataset(samples)
    first = {float(row[0].sum()) for row in dataset[PidDraw(1, 0, 0)]}
    draws = [PidDraw(1, 0, 1), PidDraw(1, 1, 0), PidDraw(4, 0, 0)]
    others = {float(row[0].sum()) for draw in draws for row in dataset[draw] if row[4]}
    reseeded = {float(row[0].sum()) for row in make_dataset(samples, seed=1)[PidDraw(1, 0, 0)]}
    assert len(first) == 3
    assert not first & others
    assert not first & reseeded


def test_items_leave_the_global_generators_alone(samples):
    dataset = make_dataset(samples, resample=True)
    before = random.getstate(), torch.get_rng_state(), pickle.dumps(np.random.get_state())
    dataset[PidDraw(2, 0, 0)]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert pickle.dumps(np.random.get_state()) == before[2]


def test_a_plain_pid_is_its_first_occurrence_in_the_epoch_set(samples):
    dataset = make_dataset(samples)
    dataset.set_epoch(3)
    assert_same_rows(dataset[np.int64(1)], dataset[PidDraw(1, 3, 0)])
    other = make_dataset(samples)
    other.set_epoch(0)
    # A draw brings its own epoch.
    assert_same_rows(dataset[PidDraw(1, 0, 0)], other[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_without_an_epoch_a_plain_pid_is_another_draw_each_time(samples, workers):
    """Loaders of programs that know of no epochs, with workers that live through all of them."""
    batches = [[pid for pid in samples if len(samples[pid]) > 2]] * 2
    loader = DataLoader(
        make_dataset(samples), batch_sampler=batches, collate_fn=collate_fn_alternative, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    torch.manual_seed(5)
    seen = [images for _ in range(2) for images, *_ in loader]
    assert len({images.numpy().tobytes() for images in seen}) == 4
    if not workers:  # those have states of their own, which go on
        torch.manual_seed(5)
        assert torch.equal(seen[0], next(iter(loader))[0])


def assert_same_rows(rows, others):
    assert [row[1:] for row in rows] == [row[1:] for row in others]
    assert all(torch.equal(row[0], other[0]) for row, other in zip(rows, others, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_of_ones_own_makes(samples, num_workers):
    # What programs outside do: the sampler, the data set and the collate function in a DataLoader of their own.
    dataset = make_dataset(samples)
    sampler = RandomIdentitySampler(samples, batch_size=2, num_instances=3)
    loader = DataLoader(
        dataset, sampler=sampler, batch_size=2, collate_fn=collate_fn_alternative, num_workers=num_workers
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        for (images, pids, camids, is_real), first in zip(batches, range(0, len(sampler), 2), strict=True):
            assert images.shape == (6, 3, 2, 2)
            assert (images.dtype, pids.dtype, camids.dtype, is_real.dtype) == (
                torch.float32,
                torch.int64,
                torch.int64,
                torch.bool,
            )
            assert pids.tolist() == np.repeat(list(sampler)[first : first + 2], 3).tolist()
            assert torch.equal(images.flatten(1).any(1), is_real)


def collect(loader, epochs):
    batches = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        batches.append([[part.clone() for part in batch] for batch in loader])
        assert len(batches[-1]) == len(loader)
    return batches


def assert_same_batches(epochs, others):
    assert [len(epoch) for epoch in epochs] == [len(epoch) for epoch in others]
    for epoch, other in zip(epochs, others, strict=True):
        for batch, twin in zip(epoch, other, strict=True):
            assert all(torch.equal(part, same) for part, same in zip(batch, twin, strict=True))


@pytest.mark.filterwarnings("ignore:.*fewer than 2 images", "ignore:This DataLoader will create")
@pytest.mark.parametrize("resample", [True, False])
def test_batches_are_the_same_for_any_number_of_workers_and_any_start(market, make_cfg, resample):
    cfg = make_cfg(market, "DATALOADER.USE_RESAMPLING", resample)

    def load(num_workers, epochs, seed=5):
        return collect(
            init_dataset("market1501", cfg=cfg, num_workers=num_workers, seed=seed).train_dataloader(), epochs
        )

    reference = load(0, range(2))
    torch.manual_seed(99)
    random.seed(99)
    assert_same_batches(load(1, range(2)), reference)
    assert_same_batches(load(3, range(2)), reference)
    # Afresh from epoch 1, as after a resume, and backwards.
    assert_same_batches(load(2, [1]), reference[1:])
    assert_same_batches(load(0, [1, 0]), reference[::-1])
    assert not torch.equal(load(0, [0], seed=6)[0][0][0], reference[0][0][0])
    assert not torch.equal(reference[0][0][0], reference[1][0][0])


@pytest.mark.filterwarnings("ignore:.*fewer than 2 images", "ignore:This DataLoader will create")
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_augmented_batches_are_the_same_for_any_number_of_workers(market, make_cfg, tmp_path, cache):
    options = {"DATALOADER.CACHE": cache, "DATALOADER.CACHE_DIR": str(tmp_path / "cache")}
    options["INPUT.SIZE_TRAIN"] = [16, 12]  # another shape than that of the files
    cfg = make_cfg(market, *(part for pair in (AUGMENTED | options).items() for part in pair))

    def load(num_workers, **changed):
        config = cfg.clone()
        config.merge_from_list([part for pair in changed.items() for part in pair])
        loader = init_dataset("market1501", cfg=config, num_workers=num_workers, seed=5).train_dataloader()
        return collect(loader, range(2))

    reference = load(0)
    torch.manual_seed(99)
    random.seed(99)
    for workers in (0, 1, 3):
        assert_same_batches(load(workers), reference)
    assert_same_batches(load(0, **{"DATALOADER.CACHE": "none"}), reference)
    # Each of the keys is at work in these batches.
    defaults = load_config()
    for key in AUGMENTED:
        section, _, name = key.partition(".")
        changed = load(0, **{key: defaults[section][name]})
        pairs = zip(itertools.chain(*changed), itertools.chain(*reference), strict=True)
        assert not all(torch.equal(images[0], others[0]) for images, others in pairs), key


@pytest.mark.filterwarnings("ignore:.*fewer than 2 images")
def test_items_do_not_depend_on_the_number_of_processes(market, make_cfg, monkeypatch):
    # The same draw gives the same rows, whichever rank loads it.
    module = init_dataset("market1501", cfg=make_cfg(market, "SOLVER.IMS_PER_BATCH", 1))
    alone = {(int(draw), draw.occurrence): module.train[draw] for draw in module.train_dataloader().sampler}
    monkeypatch.setenv("WORLD_SIZE", "2")
    compared = set()
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        fresh = init_dataset("market1501", cfg=make_cfg(market, "SOLVER.IMS_PER_BATCH", 1))
        loader = fresh.train_dataloader()
        batches = list(loader)
        assert 0 < len(batches) == len(loader)
        for draw, (images, pids, _, _) in zip(loader.sampler, batches, strict=True):
            key = int(draw), draw.occurrence
            assert key not in compared
            if key in alone:
                compared.add(key)
                rows = alone[key]
                assert torch.equal(images, torch.stack([row[0] for row in rows]))
                assert pids.tolist() == [row[1] for row in rows]
    assert len(compared) > len(alone) // 2


@pytest.mark.filterwarnings("ignore:.*fewer than 2 images")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(market, make_cfg, num_workers):
    module = init_dataset("market1501", cfg=make_cfg(market), num_workers=num_workers)
    before = random.getstate(), torch.get_rng_state()
    for loader in (module.train_dataloader(), module.val_dataloader()):
        list(loader)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_epoch_may_be_set_after_iter(samples, num_workers):
    # The Trainer calls iter() first.
    sampler = RandomIdentitySampler(samples, batch_size=2, num_instances=3)
    loader = LateStartLoader(
        make_dataset(samples),
        batch_size=2,
        sampler=sampler,
        collate_fn=collate_fn_alternative,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    iterator = iter(loader)
    sampler.set_epoch(4)
    assert_same_batches([list(iterator)], [list(loader)])
    assert {draw.epoch for draw in sampler} == {4}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(samples, tmp_path, num_workers):
    (tmp_path / "5.jpg").write_bytes((tmp_path / "5.jpg").read_bytes()[:100])
    flat = [sample for images in samples.values() for sample in images]
    loader = LateStartLoader(BaseDatasetLabelled(flat, noisy), batch_size=3, num_workers=num_workers)
    others = multiprocessing.active_children()
    gc.disable()
    try:
        with pytest.raises(UserError) as caught:
            list(loader)
        # The workers end with the error; they do not wait for a garbage collection.
        assert set(multiprocessing.active_children()) <= set(others)
    finally:
        gc.enable()
    assert str(caught.value).startswith(f"Image {tmp_path / '5.jpg'} cannot be read")
    assert "\n" not in str(caught.value)


def test_validation_items_keep_their_order(samples, tmp_path):
    flat = [sample for images in samples.values() for sample in images]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(DataLoader(BaseDatasetLabelled(flat, noisy), batch_size=4))
    for part in (1, 2, 3):
        assert torch.cat([batch[part] for batch in batches]).tolist() == [sample[part] for sample in flat]
