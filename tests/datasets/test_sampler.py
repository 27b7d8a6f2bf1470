"""The identity sampler: against the recorded lists, and its properties on drawn data sets."""

import importlib
import math
import pickle
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.draws import PidDraw
from datasets.samplers import EvaluationShard, RandomIdentitySampler, get_names, get_sampler
from tests.support import golden
from utils.errors import UnknownNameError, UserError

RECORDED = [
    (recording, key) for recording in ("sampler_s0", "sampler_s1") for key in golden(recording) if key != "counts"
]
COUNTS = st.lists(st.integers(0, 20), min_size=1, max_size=12)


def make_source(counts):
    return {10 + i: [None] * int(count) for i, count in enumerate(counts)}


def make_samplers(counts, batch_size, num_instances, world_size=1, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            RandomIdentitySampler(make_source(counts), batch_size, num_instances, world_size, rank, seed)
            for rank in range(world_size)
        ]


def test_the_first_epoch_is_drawn_until_another_is_chosen():
    (sampler,) = make_samplers([9] * 12, 2, 4, seed=3)
    first = list(sampler)
    assert {draw.epoch for draw in first} == {0}
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(("recording", "key"), RECORDED)
def test_draws_as_recorded(recording, key):
    recorded = golden(recording)
    world_size, rank, epoch = (int(part.lstrip("wsre")) for part in key.split("_"))
    source = {i: [None] * int(count) for i, count in enumerate(recorded["counts"])}
    sampler = get_sampler("random_identity", source, batch_size=4, num_instances=4, world_size=world_size, rank=rank)
    sampler.set_epoch(epoch)
    assert list(sampler) == recorded[key].tolist()
    assert len(sampler) == len(recorded[key])


@settings(max_examples=60)
@given(COUNTS, st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 9))
def test_every_epoch_is_whole_batches_of_different_identities(counts, batch_size, k, world_size, seed, epoch):
    for sampler in make_samplers(counts, batch_size, k, world_size, seed):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(sampler) == len(drawn)
        assert len(drawn) % batch_size == 0
        batches = [drawn[i : i + batch_size] for i in range(0, len(drawn), batch_size)]
        # A round is drawn without replacement, and no batch crosses from one round into the next.
        assert all(len(set(batch)) == batch_size for batch in batches)


@settings(max_examples=60)
@given(COUNTS, st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(0, 9))
def test_ranks_share_out_occurrences_without_overlap(counts, batch_size, k, world_size, epoch):
    samplers = make_samplers(counts, batch_size, k, world_size)
    draws = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        draws += [(int(draw), draw.occurrence) for draw in sampler]
    assert len(set(draws)) == len(draws)
    assert len({len(sampler) for sampler in samplers}) == 1
    source = make_source(counts)
    times = Counter(pid for pid, _ in draws)
    for pid, number in times.items():
        n = len(source[pid])
        assert n >= 2
        assert number <= math.ceil((n - 1 if n % k == 1 else n) / k)
        assert {occurrence for p, occurrence in draws if p == pid} == set(range(number))
    # It stopped for lack of identities, not before.
    left = [
        pid
        for pid, images in source.items()
        if len(images) >= 2 and times[pid] < math.ceil((len(images) - 1 if len(images) % k == 1 else len(images)) / k)
    ]
    assert len(left) < batch_size * world_size


def test_the_list_depends_on_epoch_and_seed_alone():
    counts = [7, 9, 4, 12, 5, 8]
    (one,), (other,) = make_samplers(counts, 2, 2), make_samplers(counts, 2, 2, seed=1)
    epochs = []
    for epoch in range(3):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        assert list(one) == list(one)
        assert list(one) != list(other)
        epochs.append(list(one))
    assert epochs[0] != epochs[1] != epochs[2]
    one.set_epoch(0)
    assert list(one) == epochs[0]
    # Neighbouring seeds are not each other's epochs, moved by one.
    one.set_epoch(1)
    other.set_epoch(0)
    assert list(one) != list(other)


def test_identities_with_too_few_images_are_counted_in_one_warning():
    with pytest.warns(UserWarning, match="3 of 5 identities have fewer than 2 images") as caught:
        sampler = RandomIdentitySampler(make_source([1, 4, 0, 6, 1]), batch_size=2, num_instances=2)
    assert len(caught) == 1
    assert set(sampler) == {11, 13}
    assert sampler.num_identities == 2


def test_only_the_first_process_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RandomIdentitySampler(make_source([1, 4, 4]), 1, 2, world_size=2, rank=1)
        RandomIdentitySampler(make_source([2, 4, 4]), 1, 2)


@pytest.mark.parametrize("counts", [[], [5], [1, 1, 5]])
def test_too_few_identities_give_an_empty_list(counts):
    (sampler,) = make_samplers(counts, 2, 2)
    assert len(sampler) == 0
    assert list(sampler) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_instances": 0}, "num_instances is 0"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 1}, "rank is 1; expected 0 to 0"),
    ],
)
def test_numbers_out_of_range_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        RandomIdentitySampler(make_source([4]), **({"batch_size": 1, "num_instances": 2} | arguments))


def test_an_unknown_sampler_lists_the_valid_ones():
    with pytest.raises(UnknownNameError, match=r"DATALOADER\.SAMPLER is 'softmax'; valid names: random_identity"):
        get_sampler("softmax", {}, 1, 2)


def test_names_and_the_file_of_the_original():
    door = importlib.import_module("datasets.samplers.distributed_pids_sampler")
    assert get_names() == ["random_identity"]
    sampler = get_sampler(name="random_identity", data_source={1: "ab"}, batch_size=1, num_instances=2, seed=4)
    assert type(sampler) is door.RandomIdentitySampler is RandomIdentitySampler
    assert sampler.seed == 4


def test_a_draw_is_its_pid_and_survives_the_way_to_a_worker():
    draw = pickle.loads(pickle.dumps(PidDraw(7, epoch=3, occurrence=2)))
    assert draw == 7
    assert {7: "found"}[draw] == "found"
    assert (draw.epoch, draw.occurrence) == (3, 2)


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 6))
def test_shards_of_a_validation_set_are_its_batches_in_order(size, batch_size, count):
    shards = [EvaluationShard([None] * size, batch_size, count, rank) for rank in range(count)]
    assert [i for shard in shards for i in shard] == list(range(size))
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    assert all(shard.positions.start % batch_size == 0 for shard in shards if len(shard))
    batches = [-(-len(shard) // batch_size) for shard in shards]
    assert max(batches) - min(batches) <= 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_draw_what_one_draws_with_a_batch_as_large_as_theirs_together(world_size):
    counts = [7, 9, 4, 12, 5, 8, 8, 6, 10]
    (alone,) = make_samplers(counts, 2 * world_size, 2, seed=3)
    together = make_samplers(counts, 2, 2, world_size, seed=3)
    for epoch in range(3):
        for sampler in (alone, *together):
            sampler.set_epoch(epoch)
        assert [draw for sampler in together for draw in sampler] == list(alone)
