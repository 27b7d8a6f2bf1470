"""create_embeddings.py and get_similar.py from the command line to the files."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from config.load import load_config
from evaluation import __main__ as evaluate
from inference import create_embeddings, get_similar
from inference.command_line import embedder_from_config
from inference.embedding.embedder import Embedder
from tests.launch import forbid_modules, run_script, start_python
from tests.support import ROOT, golden
from utils.distances import get_dist_func, normalize
from utils.errors import NotACtlCheckpointError

SIZE = ("INPUT.SIZE_TEST", "[64, 32]", "TRAINER.PROGRESS_BAR", "False", "DATALOADER.NUM_WORKERS", "1")
TOP = 10


@pytest.fixture(scope="module")
def gallery(recorded_images, legacy_checkpoint, tmp_path_factory):
    """The recorded gallery, embedded by the script in this process."""
    out = tmp_path_factory.mktemp("gallery")
    root = str(recorded_images / "bounding_box_test")
    create_embeddings.main([*keys(root, legacy_checkpoint, out)])
    return out


def keys(root, checkpoint, out):
    return ("DATASETS.ROOT_DIR", str(root), "MODEL.PRETRAIN_PATH", str(checkpoint), "OUTPUT_DIR", str(out), *SIZE)


def script_error(main, *arguments):
    """The one line that the script ends with, at status 2."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2


def test_recorded_gallery_and_centroids(gallery, embedder, recorded_images, legacy_checkpoint, tmp_path):
    recorded = golden("e2e_s0")
    paths = np.load(gallery / "paths.npy")
    assert [path.removeprefix(f"{recorded_images.parent}/") for path in paths] == recorded["gallery_paths"].tolist()
    found = np.load(gallery / "embeddings.npy")
    assert found.dtype == np.float32
    # Pictures are decoded by another Pillow than then: a grey level here and there.
    np.testing.assert_allclose(found[:, ::4], recorded["gallery_embeddings"], rtol=0, atol=5e-4)
    given = keys(recorded_images / "bounding_box_test", legacy_checkpoint, tmp_path)
    create_embeddings.main([*given, "MODEL.USE_CENTROIDS", "True", "--pid-from", r"([-\d]+)_c\d"])
    assert np.load(tmp_path / "paths.npy").tolist() == recorded["gallery_centroid_ids"].tolist()
    centroids = np.load(tmp_path / "embeddings.npy")
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(centroids[:, ::4], recorded["gallery_centroids"], rtol=0, atol=5e-4)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_recorded_results(gallery, recorded_images, legacy_checkpoint, tmp_path, metric, normalized):
    recorded = golden("e2e_s0")
    given = keys(recorded_images / "query", legacy_checkpoint, tmp_path)
    flags = ["--normalize_features"] if normalized else []
    arguments = ["--gallery_data", str(gallery), "--topk", str(TOP), *flags, *given, "SOLVER.DISTANCE_FUNC", metric]
    get_similar.main(arguments)
    results = np.load(tmp_path / "results.npy", allow_pickle=True).item()
    paths, queries = np.load(tmp_path / "query_paths.npy"), np.load(tmp_path / "query_embeddings.npy")
    assert list(results) == paths.tolist()
    assert [path.removeprefix(f"{recorded_images.parent}/") for path in paths] == recorded["query_paths"].tolist()
    indices = np.stack([results[path]["indices"] for path in paths])
    distances = np.stack([results[path]["distances"] for path in paths])
    gallery_paths = np.load(gallery / "paths.npy")
    assert all((results[path]["paths"] == gallery_paths[row]).all() for path, row in zip(paths, indices, strict=True))
    name = f"{metric}_{'norm' if normalized else 'raw'}"
    # Embeddings differ by up to 3e-4 from the recorded ones (see above), which lie close together: the distances differ
    # by up to 1e-3 of their mean.
    allowed = 3e-3 * recorded[f"{name}_dist"].mean()
    np.testing.assert_allclose(distances, recorded[f"{name}_dist"], rtol=0, atol=allowed)
    # So a neighbour changes places only with one that is as near: item by item, the distance to the recorded one.
    assert (indices == recorded[f"{name}_idx"]).mean() > 0.98
    x, y = torch.from_numpy(queries), torch.from_numpy(np.load(gallery / "embeddings.npy"))
    whole = get_dist_func(metric)(*((normalize(x), normalize(y)) if normalized else (x, y))).numpy()
    to_recorded = np.take_along_axis(whole, recorded[f"{name}_idx"], 1)
    np.testing.assert_allclose(to_recorded, distances, rtol=0, atol=allowed)


def test_one_picture_all_results_and_formats(gallery, recorded_images, legacy_checkpoint, tmp_path):
    picture = sorted((recorded_images / "query").iterdir())[3]
    given = keys(picture, legacy_checkpoint, tmp_path)
    get_similar.main(["--gallery_data", str(gallery), "--topk", "0", "--format", "npy,jsonl,csv", "--html", *given])
    results = np.load(tmp_path / "results.npy", allow_pickle=True).item()
    assert list(results) == [str(picture)]
    assert sorted(results[str(picture)]["indices"].tolist()) == list(range(395))
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["results"][0]["index"] == results[str(picture)]["indices"][0]
    assert (tmp_path / "results.csv").is_file()
    assert (tmp_path / "results.html").is_file()
    # and as a gallery
    create_embeddings.main([*keys(picture, legacy_checkpoint, tmp_path)])
    assert np.load(tmp_path / "paths.npy").tolist() == [str(picture)]


def test_max_distance(gallery, recorded_images, legacy_checkpoint, tmp_path):
    picture = sorted((recorded_images / "query").iterdir())[0]
    given = ["--gallery_data", str(gallery), *keys(picture, legacy_checkpoint, tmp_path)]
    get_similar.main(["--topk", "5", *given])
    nearest = np.load(tmp_path / "results.npy", allow_pickle=True).item()[str(picture)]["distances"]
    limit = float(nearest[2:4].mean())
    get_similar.main(["--topk", "5", "--max-distance", str(limit), *given])
    assert len(np.load(tmp_path / "results.npy", allow_pickle=True).item()[str(picture)]["distances"]) == 3


def test_max_far(gallery, recorded_images, legacy_checkpoint, tmp_path, capsys):
    """Thresholds of an evaluation of the very gallery: what is accepted wrongly stays within the rate."""
    paths = np.load(gallery / "paths.npy")
    pids = np.array([int(path.rsplit("/", 1)[1].split("_")[0]) for path in paths])
    labels = {"embeddings": np.load(gallery / "embeddings.npy"), "pids": pids}
    np.savez(tmp_path / "all.npz", **labels)
    files = ["--query", str(tmp_path / "all.npz"), "--gallery", str(tmp_path / "all.npz"), "--ignore-cameras"]
    assert evaluate.main([*files, "--normalize", "--roc", "--output", str(tmp_path)]) == 0
    given = keys(recorded_images / "bounding_box_test", legacy_checkpoint, tmp_path)
    far = ("--max-far", "0.01", str(tmp_path / "metrics.json"))
    get_similar.main(["--gallery_data", str(gallery), "--topk", "0", "--normalize_features", *far, *given])
    results = np.load(tmp_path / "results.npy", allow_pickle=True).item()
    wrong = sum(int((pids[results[path]["indices"]] != pid).sum()) for path, pid in zip(paths, pids, strict=True))
    most = 0.01 * (pids[:, None] != pids).sum()
    assert 0.9 * most < wrong <= 1.001 * most  # the queries were embedded anew
    script_error(get_similar.main, "--gallery_data", gallery, *far, *given)
    assert "'normalize': False" in capsys.readouterr().err


def test_subfolders(pictures, embedder, legacy_checkpoint, tmp_path):
    for path in pictures.glob("*.png"):
        (pictures / path.name[0]).mkdir(exist_ok=True)
        path.rename(pictures / path.name[0] / path.name)
    out = tmp_path / "out"
    given = ["--images-in-subfolders", *keys(pictures, legacy_checkpoint, out)]
    create_embeddings.main(given)
    paths = np.load(out / "paths.npy").tolist()
    assert [path.removeprefix(f"{pictures}/") for path in paths] == [
        *("a/a_0.png", "a/a_3.png", "a/a_6.png", "b/b_1.png", "b/b_4.png", "c/c_2.png", "c/c_5.png")
    ]
    rows = np.load(out / "embeddings.npy")
    np.testing.assert_allclose(rows, embedder.embed(paths), rtol=1e-4, atol=1e-4)
    create_embeddings.main([*given, "MODEL.USE_CENTROIDS", "True"])  # --pid-from parent
    assert np.load(out / "paths.npy").tolist() == ["a", "b", "c"]
    means = [rows[:3].mean(0), rows[3:5].mean(0), rows[5:].mean(0)]
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), means, rtol=1e-5, atol=1e-5)


def test_bad_input(gallery, pictures, legacy_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (pictures / "b_1.png").write_bytes(b"cut off")
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "embeddings.npy", np.zeros((2, 2048), np.float32))
    np.save(other / "paths.npy", np.array(["a", "b"]))
    short = tmp_path / "short"
    short.mkdir()
    np.save(short / "embeddings.npy", np.load(gallery / "embeddings.npy"))
    np.save(short / "paths.npy", np.load(gallery / "paths.npy")[1:])
    similar, create = get_similar.main, create_embeddings.main
    cases = [
        (create, keys(pictures, legacy_checkpoint, out), "b_1.png"),
        (create, keys(tmp_path / "empty", legacy_checkpoint, out), "holds no images"),
        (create, keys(tmp_path / "nowhere", legacy_checkpoint, out), "nowhere"),
        (create, keys(pictures, tmp_path / "no.ckpt", out), "no.ckpt"),
        (create, keys(pictures, "", out), "MODEL.PRETRAIN_PATH is ''"),
        (create, keys(pictures, pictures / "a_0.png", out), "a_0.png"),
        (create, keys(pictures, legacy_checkpoint, pictures / "notes.txt"), "OUTPUT_DIR"),
        (create, (*keys(pictures, legacy_checkpoint, out), "--on-error", "ignore"), "ignore"),
        (create, (*keys(pictures, legacy_checkpoint, out), "--pid-from", "(", "MODEL.USE_CENTROIDS", "True"), "'('"),
        (create, (*keys(pictures, legacy_checkpoint, out), "TRAINER.PRECISION", "transformer-engine"), "transformer"),
        (similar, ("--gallery_data", gallery, *keys(pictures, legacy_checkpoint, out)), "b_1.png"),
        (similar, ("--gallery_data", other, *keys(pictures, legacy_checkpoint, out)), "2048 dimensions"),
        (similar, ("--gallery_data", short, *keys(pictures, legacy_checkpoint, out)), "395 rows but"),
        (similar, ("--gallery_data", tmp_path / "empty", *keys(pictures, legacy_checkpoint, out)), "embeddings.npy"),
        (similar, keys(pictures, legacy_checkpoint, out), "--gallery_data"),
        (similar, ("--gallery_data", gallery, "--topk", "-3", *keys(pictures, legacy_checkpoint, out)), "--topk"),
        (similar, ("--gallery_data", gallery, "--topk", "x", *keys(pictures, legacy_checkpoint, out)), "whole number"),
        (create, keys("", legacy_checkpoint, out), "'' does not exist"),
    ]
    for main, arguments, message in cases:
        script_error(main, *arguments)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert message in lines[0]
    assert not (out / "paths.npy").exists()
    assert not (out / "results.npy").exists()


def test_differences_from_the_training_are_said(pictures, legacy_checkpoint, tmp_path, caplog):
    given = [
        *keys(pictures, legacy_checkpoint, tmp_path),
        "INPUT.SIZE_TEST",
        "[32, 32]",
        "TRAINER.PRECISION",
        "bf16-true",
    ]
    create_embeddings.main(given)
    assert "INPUT.SIZE_TEST is [32, 32] here, which is used, but [64, 32]" in caplog.text
    assert f"MODEL.NAME is resnet50 here, but resnet18 in {legacy_checkpoint}, which is used." in caplog.text
    about = json.loads((tmp_path / "gallery.json").read_text())
    assert (about["embedder"]["size"], about["embedder"]["dtype"]) == ([32, 32], "bfloat16")


def test_killed_and_resumed(gallery, recorded_images, legacy_checkpoint, tmp_path):
    """A real kill of a real program, which is run from inference/ as its readers may do."""
    out = tmp_path / "out"
    given = keys(recorded_images / "bounding_box_test", legacy_checkpoint, out)
    given = [*given, "TEST.IMS_PER_BATCH", "4"]
    command = ("create_embeddings.py", *given)
    with start_python(*command, cwd=ROOT / "inference", stderr=subprocess.PIPE) as running:
        journal = out / "embeddings.journal"
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
            assert running.poll() is None and time.monotonic() < deadline, running.stderr.read()
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert {path.name for path in out.iterdir()} == {"embeddings.journal", "embeddings.npy.partial"}
    finished = sum(len(json.loads(line).get("done", [])) for line in journal.read_text().splitlines()[:-1])
    assert 8 <= finished < 395
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        original = Embedder.embed_batches
        patch.setattr(Embedder, "embed_batches", lambda self, *given: seen.append(given) or original(self, *given))
        create_embeddings.main([*given, "--resume"])
    assert len(seen[0][0]) <= 395 - finished
    assert np.load(out / "paths.npy").tolist() == np.load(gallery / "paths.npy").tolist()
    same = {"rtol": 1e-4, "atol": 1e-4}  # batches of another size are summed in another order
    np.testing.assert_allclose(np.load(out / "embeddings.npy"), np.load(gallery / "embeddings.npy"), **same)


@pytest.mark.parametrize("script", ["create_embeddings", "get_similar"])
def test_help_needs_no_torch(script, tmp_path):
    done = run_script(f"inference/{script}.py", "--help", cwd=tmp_path, env=forbid_modules(tmp_path, "torch"))
    assert done.returncode == 0, done.stderr
    for flag in ("--images-in-subfolders", "--print_freq", "--config_file", "DATASETS.ROOT_DIR"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("wanted", "threads"), [(-1, "automatic"), (6, "automatic"), (0, 0), (2, 2), (4, 4), (9, 4)], ids=str
)
def test_number_of_decoding_threads(legacy_checkpoint, monkeypatch, wanted, threads):
    """The default of the loaders' processes leaves it to the device; a number of one's own counts, up to the cores."""
    for module in ("utils.devices", "inference.embedding.embedder"):
        monkeypatch.setattr(f"{module}.count_cpus", lambda: 4)
    opts = ["MODEL.PRETRAIN_PATH", str(legacy_checkpoint), "GPU_IDS", [], "DATALOADER.NUM_WORKERS", wanted]
    embedder = embedder_from_config(load_config("", opts))
    assert embedder.num_workers == (1 if threads == "automatic" else threads)


def test_weights_of_a_backbone_give_its_pooled_features_and_say_so(model, pictures, tmp_path):
    """create_embeddings.py, a real program, with ImageNet weights; and the Embedder with the same file."""
    path = tmp_path / "resnet18.pth"
    torch.save(model.backbone.base.state_dict(), path)
    given = (*keys(pictures, path, tmp_path / "out"), "GPU_IDS", "[]")
    named = ("MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", "512")
    done = run_script("inference/create_embeddings.py", *given, *named, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warning = f"{path} holds torchvision resnet18 weights, not a trained CTL model: embeddings are the pooled features"
    assert done.stderr.count(warning) == 1 and done.stderr.count("100 of 100 tensors loaded") == 1
    found = np.load(tmp_path / "out" / "embeddings.npy")
    with pytest.raises(NotACtlCheckpointError, match="holds torchvision resnet18 weights; expected"):
        Embedder.from_checkpoint(path, "cpu")
    embedder = Embedder.from_checkpoint(path, "cpu", network="resnet18", size=(64, 32))
    paths = np.load(tmp_path / "out" / "paths.npy").tolist()
    np.testing.assert_allclose(embedder.embed(paths), found, rtol=1e-4, atol=1e-4)
    images = torch.rand(2, 3, 64, 32)
    with torch.inference_mode():
        _, pooled = model.backbone(images)
    np.testing.assert_allclose(embedder.embed(images), pooled, rtol=1e-4, atol=1e-4)
    other = run_script("inference/create_embeddings.py", *given, cwd=tmp_path)
    assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
    assert "which MODEL.NAME resnet50 cannot start from: " in other.stderr
