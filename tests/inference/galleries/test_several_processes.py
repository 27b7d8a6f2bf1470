"""Several processes that make one gallery: real ones, killed for good; a stand-in for the model makes them cheap."""

import errno
import fcntl
import logging
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.galleries import filling, runs
from inference.galleries.creation import GalleryOptions, create_gallery
from inference.galleries.gallery import read_gallery
from inference.galleries.labels import LabelledImages
from inference.galleries.parts import PartWriter, part_file
from inference.galleries.sources import Chunk, FileList, Item, folder_source, labelled_source
from inference.galleries.team import ALONE, Team, find_team
from tests.inference.galleries.test_gallery import FakeEmbedder
from tests.launch import CONTEXT
from utils.errors import UserError

IMAGES, CHUNK = 40, 3


class SlowEmbedder(FakeEmbedder):
    """Takes some time for a batch, so that whoever kills it finds it at work."""

    pause = 0.05

    def embed_given_batches(self, batches, on_error="stop"):
        for batch in super().embed_given_batches(batches, on_error):
            time.sleep(self.pause)
            yield batch


def embed(root, out, launch, **options):
    """One of the processes; what it says goes to a file beside the gallery."""
    logging.basicConfig(filename=f"{out}.log", level=logging.INFO, format="%(message)s", force=True)
    team = Team(launch) if launch else ALONE
    source = folder_source(root, chunk_size=CHUNK)
    create_gallery(SlowEmbedder(), source, out, GalleryOptions(progress=False, team=team, **options))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"p_{number:02d}.png").write_text(f"content {number}")
    return folder


@pytest.fixture
def start(files, tmp_path):
    """Starts processes; those that a test leaves are killed."""
    processes = []

    def begin(count, launch="together", **options):
        given = {"target": embed, "args": (files, tmp_path / "out", launch), "kwargs": options}
        new = [CONTEXT.Process(**given) for _ in range(count)]
        for process in new:
            process.start()
        processes.extend(new)
        return new

    yield begin
    for process in processes:
        process.kill()
        process.join()


def run_here(files, out, embedder=None, launch=None, **options):
    options = GalleryOptions(progress=False, team=Team(launch) if launch else ALONE, **options)
    return create_gallery(embedder or FakeEmbedder(), folder_source(files, chunk_size=CHUNK), out, options)


def content(folder):
    """The bytes of the gallery: nothing else may be left, but a mark of those who made it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".embeddings.launch"}


def claims(out):
    """Chunk -> process that works on it."""
    found = {}
    for path in (out / "embeddings.parts").glob("*.claim"):
        if process := re.search(r"process (\d+)", path.read_text() if path.exists() else ""):
            found[int(path.stem)] = int(process[1])
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


@pytest.fixture
def expected(files, tmp_path):
    run_here(files, tmp_path / "alone")
    return content(tmp_path / "alone")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_gallery_is_the_same_for_any_number_of_processes(start, expected, tmp_path, count):
    processes = start(count)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert content(tmp_path / "out") == expected


def test_who_is_waited_for_is_said(start, files, expected, tmp_path, monkeypatch, caplog):
    (stopped,), out = start(1), tmp_path / "out"

    def is_stopped_within_a_chunk():
        os.kill(stopped.pid, signal.SIGSTOP)
        if any(not part_file(out, number, ".json").exists() for number in claims(out)):
            return True
        os.kill(stopped.pid, signal.SIGCONT)
        return False

    wait_for(is_stopped_within_a_chunk)
    monkeypatch.setattr(filling, "_SAY_SECONDS", 0.3)
    with ThreadPoolExecutor(1) as executor, caplog.at_level(logging.INFO):
        made = executor.submit(run_here, files, out, launch="together")
        wait_for(lambda: "Waiting for chunks" in caplog.text)
        os.kill(stopped.pid, signal.SIGCONT)
        made.result(60)
    line = rf"Waiting for chunks, \d in all; number \d+ is claimed by machine \S+ \(process {stopped.pid}\)\."
    assert re.search(line, caplog.text), caplog.text
    stopped.join(60)
    assert content(out) == expected


def test_one_of_two_is_killed(start, expected, tmp_path):
    processes, out = start(2), tmp_path / "out"
    by = wait_for(lambda: found if len(set((found := claims(out)).values())) == 2 else None)
    victim = processes[0]
    os.kill(victim.pid, signal.SIGKILL)
    processes[1].join(60)
    assert processes[1].exitcode == 0
    assert content(out) == expected
    said = Path(f"{out}.log").read_text()
    (chunk,) = re.findall(
        rf"machine \S+ \(process {victim.pid}\) ended without finishing chunk (\d+); it is taken", said
    )
    assert int(chunk) >= min(number for number, process in by.items() if process == victim.pid)


def test_all_of_three_are_killed_and_one_goes_on(start, files, expected, tmp_path, caplog):
    processes, out = start(3), tmp_path / "out"
    parts = out / "embeddings.parts"
    wait_for(lambda: len(list(parts.glob("*.json"))) >= 4)
    for process in processes:
        process.kill()
        process.join()
    finished = {path.stem for path in parts.glob("*.json")}
    assert len(finished) < len(expected["paths.npy"]) and not (out / "paths.npy").exists()
    embedder = FakeEmbedder()
    created = run_here(files, out, embedder, resume=True)
    kept = sum(CHUNK if int(number) < IMAGES // CHUNK else IMAGES % CHUNK for number in finished)
    assert created.embedded == len(embedder.seen) == IMAGES - kept
    assert content(out) == expected
    assert 1 <= caplog.text.count("it is taken over.") <= 3


def test_a_second_run_does_not_disturb_the_first(start, files, expected, tmp_path):
    """Not started together, it refuses; with --resume it takes part."""
    (process,), out = start(1, launch=None), tmp_path / "out"
    wait_for(lambda: claims(out))
    for options in ({}, {"append": True}):
        with pytest.raises(UserError, match=f"another run is writing to {out}: wait for its end, take part in it with"):
            run_here(files, out, **options)
    (files / "q_new.png").write_text("new")
    with pytest.raises(UserError, match="is of another list of images than that of .*all processes need the same"):
        run_here(files, out, resume=True)
    (files / "q_new.png").unlink()
    embedder = FakeEmbedder()
    run_here(files, out, embedder, resume=True)
    assert embedder.seen
    process.join(60)
    assert process.exitcode == 0
    assert content(out) == expected


def test_two_runs_that_begin_at_once(start, expected, tmp_path):
    """One of them makes the gallery, the other refuses or, where it comes later, makes it again."""
    processes = [*start(1, launch=None), *start(1, launch=None)]
    for process in processes:
        process.join(60)
    assert 0 in [process.exitcode for process in processes]
    assert content(tmp_path / "out") == expected


def test_whoever_comes_late_finds_the_gallery_of_its_launch(files, tmp_path):
    first, late, other = FakeEmbedder(), FakeEmbedder(), FakeEmbedder()
    out = tmp_path / "out"
    assert not run_here(files, out, first, launch="one").by_another
    assert run_here(files, out, late, launch="one").by_another
    assert not late.seen
    assert run_here(files, out, other, launch="two").embedded == IMAGES
    (files / "q_new.png").write_text("new")
    assert run_here(files, out, late, launch="two").embedded == IMAGES + 1


def test_a_launch_that_is_killed_and_started_by_its_launcher_goes_on(start, files, expected, tmp_path):
    """As torchrun --max-restarts does, without --resume."""
    (process,), out = start(1), tmp_path / "out"
    wait_for(lambda: len(list((out / "embeddings.parts").glob("*.json"))) >= 2)
    process.kill()
    process.join()
    embedder = FakeEmbedder()
    run_here(files, out, embedder, launch="together")
    assert len(embedder.seen) < IMAGES
    assert content(out) == expected


# ----------------------------------------------------------------------------------------------------- disks and files


def test_a_full_disk_keeps_what_is_done(files, expected, tmp_path, monkeypatch):
    out, count, original = tmp_path / "out", [0], os.fsync

    def full(descriptor):
        count[0] += 1
        if count[0] > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"OUTPUT_DIR: cannot write to .*No space left.*What was embedded is kept: --res"
        ):
            run_here(files, out)
    assert {path.name for path in out.iterdir()} == {"embeddings.run.json", "embeddings.parts"}
    embedder = FakeEmbedder()
    run_here(files, out, embedder, resume=True)
    assert 0 < len(embedder.seen) < IMAGES
    assert content(out) == expected


def test_a_disk_that_has_no_locks(files, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"embeddings.lock' cannot be locked \(No locks available\): name a folder on"):
        run_here(files, tmp_path / "out")


class Shards:
    """Chunks of four images each as bytes, the second of which ends after two."""

    def __init__(self):
        self.about = {"root": "shards", "in_subfolders": False, "source": None}

    def chunks(self):
        return [Chunk(f"shard-{number}.tar", number) for number in range(3)]

    def read(self, chunk):
        for i in range(4):
            if (chunk.key, i) == (1, 2):
                raise UserError(f"{chunk.name} is cut off after 2 images.")
            yield Item(f"{chunk.name}/{i}.png", b"bad" if i == 1 else f"{chunk.key} {i}".encode())

    def digest(self):
        return "shards"


class OfBytes(FakeEmbedder):
    """Embeds the bytes of files."""

    def embed_given_batches(self, batches, on_error="stop"):
        folder = Path(self.folder)
        for number, batch in enumerate(batches):
            paths = [folder / f"{number}_{i}" for i in range(len(batch))]
            for path, data in zip(paths, batch, strict=True):
                path.write_bytes(data)
            yield from super().embed_given_batches([paths], on_error)


def test_a_shard_that_is_cut_off(tmp_path, caplog):
    embedder, out = OfBytes(), tmp_path / "out"
    embedder.folder = tmp_path
    stop = GalleryOptions(progress=False)
    with pytest.raises(UserError, match=r"^shard-0.tar/1.png: .* is bad. 0 images are embedded: --resume continues"):
        create_gallery(embedder, Shards(), out, stop)
    skip = GalleryOptions(progress=False, on_error="skip", resume=True)
    created = create_gallery(embedder, Shards(), out, skip)
    kept = [(0, 0), (0, 2), (0, 3), (1, 0), (2, 0), (2, 2), (2, 3)]
    assert list(read_gallery(out).paths) == [f"shard-{shard}.tar/{i}.png" for shard, i in kept]
    assert list(created.skipped) == [
        *("shard-0.tar/1.png", "shard-1.tar/1.png", "shard-1.tar", "shard-2.tar/1.png"),
    ]
    assert (out / "skipped.txt").read_text().splitlines() == list(created.skipped)
    assert "skipped the rest of shard-1.tar: shard-1.tar is cut off after 2 images." in caplog.messages
    more = GalleryOptions(progress=False, on_error="skip", append=True)
    assert create_gallery(embedder, Shards(), out, more).count == 7
    assert list(read_gallery(out).paths) == [f"shard-{shard}.tar/{i}.png" for shard, i in kept]


def test_a_shard_that_is_cut_off_can_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Shards, "read", lambda self, chunk: iter(()) if chunk.key else _refuse(chunk))
    with pytest.raises(UserError, match=r"shard-0.tar is no tar file\. 0 images are embedded: --resume continues from"):
        create_gallery(FakeEmbedder(), Shards(), tmp_path / "out", GalleryOptions(progress=False))


def _refuse(chunk):
    raise UserError(f"{chunk.name} is no tar file.")
    yield


def test_centroids_and_labels_of_several(files, tmp_path):
    """A launch whose processes come one after another, the second in the middle of a run."""
    labels = [(number // 4, number % 2) for number in range(IMAGES)]
    paths = sorted(map(str, files.iterdir()))
    source = labelled_source(files, LabelledImages(paths, labels, {"data_set": "t", "subset": "gallery"}), CHUNK)
    create_gallery(FakeEmbedder(), source, tmp_path / "out", GalleryOptions(progress=False, team=Team("one")))
    assert read_gallery(tmp_path / "out").labels == labels
    run_here(files, tmp_path / "people", pid_from="filename")
    (files / "r_new.png").write_text("new")
    run_here(files, tmp_path / "people", pid_from="filename", append=True)
    run_here(files, tmp_path / "at_once", pid_from="filename")
    appended, at_once = (read_gallery(tmp_path / name) for name in ("people", "at_once"))
    assert list(appended.paths) == list(at_once.paths) == ["p", "r"]
    np.testing.assert_allclose(appended.embeddings, at_once.embeddings, rtol=1e-6)


@pytest.mark.parametrize(
    ("variables", "team"),
    [
        ({}, ALONE),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, ALONE),  # a batch script without srun
        (
            {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
            | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            Team("SLURM job 7, step 1", 1, 4, False, "SLURM"),
        ),
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "here", "MASTER_PORT": "9"},
            Team("torchrun a, here:9 ", 0, 2, False, "torchrun"),
        ),
    ],
)
def test_the_environment_says_who_works_together(monkeypatch, variables, team):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_team() == team
    assert runs.has_finished(Path("/nowhere"), team.launch, {}) is False


def test_chunks_are_claimed_as_they_are_now_not_as_they_were_listed(tmp_path):
    """Another process may have finished a chunk since, or begun another run in the folder."""

    def begin(name):
        source = FileList([f"{name}{number}.png" for number in range(3)], {}, chunk_size=1)
        entry = {"about": {"embedder": {"dimension": 2}}, "base": None, "launch": None}
        return runs.EmbeddingRun.start(tmp_path, entry, source)

    run = begin("a")
    claims = run.claims()
    assert next(claims) == 0
    part = PartWriter(tmp_path, 1, 2)
    part.add(np.zeros((1, 2), np.float32), ["a1.png"], [], [])
    part.finish()
    assert next(claims) == 2
    run.close()
    claims = run.claims()
    assert next(claims) == 0
    begin("b")
    assert list(claims) == []
    run.close()
