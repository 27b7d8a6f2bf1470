"""Several processes search a gallery as one does, bit for bit."""

from typing import Any

import numpy as np
import pytest

from inference.searching.search import search_gallery
from inference.searching.sharing import launched_processes
from tests import workers
from tests.launch import free_port, run_processes, run_python
from tests.support import ROOT

BLOCKS = {"block_bytes": 1 << 15}  # of 128 rows of 64 numbers
OPTIONS: tuple[dict[str, Any], ...] = (
    BLOCKS,
    BLOCKS | {"topk": 200},  # more than the last block has
    BLOCKS | {"metric": "cosine", "topk": 7, "max_distance": 0.8},
    BLOCKS | {"normalize": True, "topk": 3},
    BLOCKS | {"topk": 0, "max_distance": 70.0},
    BLOCKS | {"topk": 0, "max_distance": -1.0},
    BLOCKS | {"topk": 4, "max_distance": -1.0},
    {"topk": 0},
    {},  # one block: there is work for one process only
)


def drawn(rows, seed):
    return np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)


def with_ties(rows, seed):
    return np.random.default_rng(seed).integers(0, 2, (rows, 64)).astype(np.float32)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_find_what_one_finds(count, tmp_path):
    searches = []
    for make in (drawn, with_ties):
        np.save(tmp_path / f"{make.__name__}.npy", make(1300, 0))
        searches.append([(make(23, 1), options) for options in OPTIONS])
    for make, wanted in zip((drawn, with_ties), searches, strict=True):
        file = tmp_path / f"{make.__name__}.npy"
        found = run_processes(workers.search_in_parts, count, tmp_path / make.__name__, [file], wanted)
        for place, (query, options) in enumerate(wanted):
            one = search_gallery(query, np.load(file), **options)
            for of_process in found:
                for got, expected in zip(of_process[place], one, strict=True):
                    assert got.dtype == expected.dtype
                    assert np.array_equal(got, expected), options


def test_every_process_raises_what_one_finds(tmp_path):
    gallery = drawn(1300, 0)
    np.save(tmp_path / "whole.npy", gallery)
    np.save(tmp_path / "shorter.npy", gallery[:1200])
    bad = gallery.copy()
    bad[1290, 5] = bad[700, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    searches = [(drawn(4, 1), BLOCKS)]
    files = [tmp_path / "whole.npy", tmp_path / "shorter.npy"]
    for texts in run_processes(workers.search_in_parts, 2, tmp_path / "a", files, searches):
        assert "process 1 finds a gallery of [1200, 64], but the first process one of [1300, 64]" in texts[0]
    for texts in run_processes(workers.search_in_parts, 2, tmp_path / "b", [tmp_path / "bad.npy"], searches):
        assert "[60, 2] is nan" in texts[0]
        assert "gallery[640:]" in texts[0]


def test_a_batch_script_of_slurm_is_one_process(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "search", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with launched_processes() as processes:
        assert processes is None


def test_slurm_starts_processes(tmp_path):
    found = run_processes(workers.meet_by_slurm, 2, tmp_path / "slurm", "localhost,another[1-3]")
    assert found == [(0, 2), (1, 2)]


@pytest.mark.by_hand
def test_the_script_writes_what_one_process_finds(recorded_images, legacy_checkpoint, tmp_path):
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    gallery.mkdir()
    rows = 20_000  # three blocks
    np.save(gallery / "embeddings.npy", np.abs(np.random.default_rng(0).standard_normal((rows, 512))).astype("f4"))
    np.save(gallery / "paths.npy", np.array([f"{i}.jpg" for i in range(rows)]))
    done = run_python(
        *("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()),
        *(ROOT / "inference/get_similar.py", "--gallery_data", gallery, "DATASETS.ROOT_DIR", recorded_images / "query"),
        *("MODEL.PRETRAIN_PATH", legacy_checkpoint, "OUTPUT_DIR", out, "INPUT.SIZE_TEST", "[64, 32]"),
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes share the exact search") == 1
    assert done.stderr.count("queries against") == 1
    indices, distances = search_gallery(np.load(out / "query_embeddings.npy"), np.load(gallery / "embeddings.npy"))
    entries = np.load(out / "results.npy", allow_pickle=True).item().values()
    assert np.array_equal([entry["indices"] for entry in entries], indices)
    assert np.array_equal([entry["distances"] for entry in entries], distances)
