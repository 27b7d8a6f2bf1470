"""The cache of decoded pictures: the same pixels, each file decoded once, within its room, gone when it should be."""

import errno
import logging
import os
import pickle
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import datasets.caching.cache
from datasets import init_dataset
from datasets.caching.cache import ImageCache, image_loaders
from datasets.caching.folders import FolderLease, disk_folder, prune, shared_folder
from datasets.transforms.pixels import ResizedPlanes, resize_to_planes
from tests.datasets.conftest import write_image
from tests.launch import run_forked, start_python
from utils.errors import MissingPathError, UserError
from utils.image import pil_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer than 2 images"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

SIZE = (16, 8)
RESIZE = ResizedPlanes(SIZE)
PICTURE = 3 * 16 * 8
ENTRY = PICTURE + 16


@pytest.fixture
def paths(tmp_path):
    return [str(write_image(tmp_path / "images" / f"{i}.png", i)) for i in range(12)]


@pytest.fixture
def cache(tmp_path, paths):
    return ImageCache(disk_folder(str(tmp_path / "cache")), paths, RESIZE)


@pytest.fixture
def no_decoding(monkeypatch):
    """Call it: from then on, decoding a picture is a failure."""

    def forbid():
        def fail(path, *_):
            raise AssertionError(f"{path} was decoded")

        monkeypatch.setattr(datasets.caching.cache, "pil_loader", fail)

    return forbid


def expect(path, size=SIZE):
    return resize_to_planes(pil_loader(path), size)


def entries(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "lock"]


def batches_of(module, epochs=2):
    """Everything that two epochs and a validation load."""
    loaded = []
    loader = module.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        loaded += [[part.clone() for part in batch] for batch in loader]
    return loaded + [[part.clone() for part in batch] for batch in module.val_dataloader()]


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Where ram caches lie in these tests."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(
        datasets.caching.cache, "shared_folder", lambda key: folder / shared_folder(key).name, raising=True
    )
    return folder


# --- pixels


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_batches_are_the_same_bit_for_bit(market, make_cfg, tmp_path, memory, kind, num_workers):
    expected = batches_of(init_dataset("market1501", cfg=make_cfg(market)))
    options = ["DATALOADER.CACHE", kind, "DATALOADER.CACHE_DIR", str(tmp_path / "cache")]
    module = init_dataset("market1501", cfg=make_cfg(market, *options), num_workers=num_workers)
    for _ in range(2):  # cold, then warm
        for batch, other in zip(batches_of(module), expected, strict=True):
            assert all(torch.equal(part, twin) for part, twin in zip(batch, other, strict=True))
    assert len(entries(memory if kind == "ram" else tmp_path / "cache")) > 8  # and of the test set all


def test_workers_fill_one_cache_together(market, make_cfg, tmp_path, no_decoding):
    options = ["DATALOADER.CACHE", "disk", "DATALOADER.CACHE_DIR", str(tmp_path / "cache")]
    cfg = make_cfg(market, *options)
    expected = batches_of(init_dataset("market1501", cfg=cfg, num_workers=2))
    assert not [path for path in entries(tmp_path / "cache") if path.name.endswith(".tmp")]
    # Another run, in which no file is decoded any more.
    no_decoding()
    for batch, other in zip(batches_of(init_dataset("market1501", cfg=cfg)), expected, strict=True):
        assert all(torch.equal(part, twin) for part, twin in zip(batch, other, strict=True))


def test_a_picture_of_another_size_is_another_entry(tmp_path, paths, cache):
    small = ImageCache(cache.folder, paths, ResizedPlanes((4, 6)))
    for _ in range(2):
        assert torch.equal(cache(paths[0]), expect(paths[0]))
        assert torch.equal(small(paths[0]), expect(paths[0], (4, 6)))


def test_a_picture_between_borders_is_another_entry(paths, cache):
    for colour in ((1, 2, 3), (4, 5, 6)):
        padded = ImageCache(cache.folder, paths, ResizedPlanes((16, 12), colour))
        stretched = ImageCache(cache.folder, paths, ResizedPlanes((16, 12)))
        for _ in range(2):
            assert torch.equal(padded(paths[0]), resize_to_planes(pil_loader(paths[0]), (16, 12), colour))
            assert torch.equal(stretched(paths[0]), expect(paths[0], (16, 12)))
    assert cache.entry_of(paths[0]) == ImageCache(cache.folder, [], ResizedPlanes([16, 8])).entry_of(paths[0])


@pytest.mark.parametrize("what", ["bytes", "time"])
def test_a_changed_file_is_decoded_anew(paths, cache, what):
    before = cache(paths[0])
    status = Path(paths[0]).stat()
    write_image(Path(paths[0]), 99, (12, 25) if what == "bytes" else (12, 24))
    if what == "bytes":
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
        assert Path(paths[0]).stat().st_size != status.st_size
    else:
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert torch.equal(cache(paths[0]), expect(paths[0]))
    assert not torch.equal(cache(paths[0]), before)
    assert len(entries(cache.folder)) == 1


def test_pixels_of_another_pillow_are_not_taken(paths, cache, monkeypatch):
    cache(paths[0])
    Path(cache.entry_of(paths[0])).write_bytes(Path(cache.entry_of(paths[0])).read_bytes()[:16] + bytes(PICTURE))
    assert not cache(paths[0]).any()  # taken as it is ...
    monkeypatch.setattr(datasets.caching.cache.PIL, "__version__", "another")
    assert torch.equal(cache(paths[0]), expect(paths[0]))  # ... but not under another version


@pytest.mark.parametrize("length", [0, 10, 16, ENTRY - 1])
def test_a_cut_off_entry_is_written_anew(paths, cache, length, no_decoding):
    cache(paths[0])
    entry = Path(cache.entry_of(paths[0]))
    entry.write_bytes(entry.read_bytes()[:length])
    assert torch.equal(cache(paths[0]), expect(paths[0]))
    assert entry.stat().st_size == ENTRY
    no_decoding()
    cache(paths[0])


def test_what_is_handed_out_may_be_changed(paths, cache):
    for _ in range(3):
        pixels = cache(paths[0])
        assert torch.equal(pixels, expect(paths[0]))
        pixels.zero_()


def test_errors_are_those_of_the_plain_loader(tmp_path, paths, cache):
    cache(paths[0])
    Path(paths[0]).unlink()
    with pytest.raises(MissingPathError, match="0.png does not exist"):
        cache(paths[0])
    Path(paths[1]).write_bytes(b"no picture")
    with pytest.raises(UserError, match="1.png cannot be read"):
        cache(paths[1])
    assert len(entries(cache.folder)) == 1


# --- room


@pytest.mark.parametrize(("pictures", "kept"), [(0, (0, 0)), (4, (4, 0)), (14, (12, 2)), (100, (12, 3))])
def test_the_first_pictures_get_the_room(tmp_path, paths, pictures, kept, caplog):
    caplog.set_level(logging.INFO, "datasets.caching.cache")
    wanted = [(paths + paths[:5], RESIZE), (paths[:3], ResizedPlanes(list(SIZE)))]
    loaders = image_loaders("disk", (pictures * PICTURE + 1) / 1e9, str(tmp_path / "cache"), wanted)
    assert tuple(len(loader.paths) for loader in loaders) == kept
    for loader, (part, _) in zip(loaders, wanted, strict=True):
        for path in part:
            assert torch.equal(RESIZE(loader(path)), expect(path))
    # The second part's pictures are the first's, of the same size: the same entries.
    assert len(entries(tmp_path / "cache")) == max(kept[0], kept[1])
    assert f"{sum(kept)} of 15 images" in caplog.text
    assert ("do not fit in DATALOADER.CACHE_GB" in caplog.text) is (sum(kept) < 15)


def test_ram_that_is_not_there_is_said(paths, memory, monkeypatch, caplog):
    image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"Cache ram: there is no writable /dev/shm; {memory} takes its place."]
    caplog.clear()
    monkeypatch.setattr(datasets.caching.cache, "MEMORY", memory)
    image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_memory_is_filled_by_half_only(paths, memory, monkeypatch, caplog):
    monkeypatch.setattr(datasets.caching.cache, "free_bytes", lambda folder: 10 * PICTURE)
    (loader,) = image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    assert len(loader.paths) == 5
    assert "7 images are decoded each time" in caplog.text
    assert "--shm-size" in caplog.text


def test_a_full_disk_ends_the_writing_not_the_run(paths, cache, monkeypatch, caplog):
    cache(paths[0])

    def fail(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    for path in paths:
        assert torch.equal(cache(path), expect(path))
    assert len(entries(cache.folder)) == 1
    assert caplog.text.count("No space left on device") == 1


def test_old_entries_of_other_runs_give_way_and_other_files_stay(tmp_path, paths):
    folder = disk_folder(str(tmp_path / "cache"))
    old, own = ImageCache(folder, paths[:6], RESIZE), ImageCache(folder, paths[6:], RESIZE)
    for number, path in enumerate(paths):
        (old if number < 6 else own)(path)
        entry = Path(old.entry_of(path))
        os.utime(entry, (1000 + number, 1000 + number))
    stale = folder / "0" / f".{'0' * 32}.tmp"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    mine = [folder / "notes.txt", folder / "0" / "notes.txt"]
    for path in mine:
        path.write_text("mine")
    prune(folder, {own.entry_of(path) for path in paths[6:]}, room=2 * ENTRY)
    left = {str(path) for path in entries(folder)}
    assert left == {own.entry_of(path) for path in paths[4:]} | {str(path) for path in mine}


def test_a_run_makes_room_for_itself(tmp_path, paths):
    image_loaders("disk", 1.0, str(tmp_path / "cache"), [(paths[:6], RESIZE)])[0](paths[0])
    image_loaders("disk", 1.0, str(tmp_path / "cache"), [(paths[6:], RESIZE)])
    assert len(entries(tmp_path / "cache")) == 1  # there is room for both
    image_loaders("disk", 6 * PICTURE / 1e9, str(tmp_path / "cache"), [(paths[6:], RESIZE)])
    assert not entries(tmp_path / "cache")


def test_a_test_run_gives_all_room_to_the_test_pictures(market, make_cfg, tmp_path):
    options = [
        "DATALOADER.CACHE",
        "disk",
        "DATALOADER.CACHE_DIR",
        str(tmp_path),
        "DATALOADER.CACHE_GB",
        8 * PICTURE / 1e9,
    ]
    module = init_dataset("market1501", cfg=make_cfg(market, *options))
    module.setup("test")
    assert (len(module.train.load.paths), len(module.val.load.paths)) == (0, 8)
    module = init_dataset("market1501", cfg=make_cfg(market, *options))
    module.setup("fit")
    assert (len(module.train.load.paths), len(module.val.load.paths)) == (8, 0)


@pytest.mark.parametrize("value", ["file", "/proc/nothing"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path, paths, value):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / value)
    with pytest.raises(UserError, match=f"DATALOADER.CACHE_DIR: cannot write to '{folder}"):
        image_loaders("disk", 1.0, folder, [(paths, RESIZE)])


def test_the_usual_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert disk_folder("") == tmp_path / "xdg" / "centroids-reid" / "pictures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert disk_folder("") == tmp_path / "home" / ".cache" / "centroids-reid" / "pictures"


# --- processes


def fill(cache, paths):
    for path in paths:
        assert torch.equal(cache(path), expect(path))


def test_several_processes_write_the_same_entries(paths, cache):
    assert run_forked(fill, cache, paths * 5, count=3) == [0, 0, 0]
    assert sorted(str(path) for path in entries(cache.folder)) == sorted(cache.entry_of(path) for path in paths)


def test_a_copy_sent_to_another_process_does_not_end_the_cache(paths, memory):
    (loader,) = image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    copy = pickle.loads(pickle.dumps(loader))
    fill(copy, paths)
    folder = loader.folder
    del copy
    assert len(entries(folder)) == len(paths)
    del loader
    assert not list(memory.iterdir())


def test_the_last_holder_removes_the_folder(paths, memory, no_decoding):
    (first,) = image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    (second,) = image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    (other,) = image_loaders("ram", 1.0, "", [(paths[:3], RESIZE)])
    fill(first, paths)
    assert first.folder == second.folder != other.folder
    del first
    no_decoding()
    second(paths[0])
    del second
    assert list(memory.iterdir()) == [other.folder]
    assert oct(other.folder.stat().st_mode)[-3:] == "700"


def test_a_worker_that_drops_its_copy_does_not_end_the_cache(tmp_path):
    holder = [FolderLease(tmp_path / "folder")]
    assert run_forked(holder.clear) == [0]
    assert (tmp_path / "folder").exists()
    holder.clear()
    assert not list(tmp_path.iterdir())


HOLDER = """
import sys, time
from pathlib import Path
from datasets.caching.folders import FolderLease
lease = FolderLease(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60 if sys.argv[2] == "wait" else 0)
"""


def start_holder(folder, what):
    process = start_python("-c", HOLDER, folder, what, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_folders_of_processes_that_live_are_kept_and_those_of_killed_ones_removed(tmp_path):
    names = [f"centroids-reid-{os.getuid()}-{letter}" for letter in "abc"]
    start_holder(tmp_path / names[0], "leave").wait(30)
    assert not list(tmp_path.iterdir())  # an ordinary end
    holder = start_holder(tmp_path / names[0], "wait")
    try:
        lease = FolderLease(tmp_path / names[1])
        assert {path.name for path in tmp_path.iterdir()} == set(names[:2])
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    assert (tmp_path / names[0]).exists()
    lease = FolderLease(tmp_path / names[2])
    assert [path.name for path in tmp_path.iterdir()] == names[2:]
    del lease


def test_another_users_folder_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(UserError, match="belongs to another user; use disk or none"):
        FolderLease(tmp_path / "folder")


def test_names_of_shared_folders_tell_data_sets_apart():
    assert shared_folder("a") == shared_folder("a") != shared_folder("b")


def test_after_the_end_nothing_is_left_behind(paths, memory):
    (loader,) = image_loaders("ram", 1.0, "", [(paths, RESIZE)])
    worker = pickle.loads(pickle.dumps(loader))
    del loader
    fill(worker, paths)  # a worker that outlives the run decodes, and writes nothing
    assert not list(memory.iterdir())
