"""create_embeddings.py and get_similar.py from the command line to the files."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from config.load import load_config
from datasets.bases import ReidDataModule, Splits
from evaluation import __main__ as evaluate
from evaluation.calibration import read_calibration, write_calibration
from inference import create_embeddings, get_similar
from inference.command_line import embedder_from_config
from inference.embedding.embedder import Embedder
from inference.galleries.gallery import read_gallery
from inference.galleries.parts import PartWriter
from inference.galleries.runs import EmbeddingRun
from inference.galleries.sources import FileList
from modelling.backbones import NetworkOptions, get_backbone
from tests.inference.conftest import draw_picture
from tests.launch import forbid_modules, run_script, start_python
from tests.support import ROOT, UPRIGHT, fill_by_recipe, golden, save_turned, stored_pixels
from utils.distances import get_dist_func, normalize
from utils.errors import NotACtlCheckpointError, UserError
from utils.labels import Names

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
    known = pids[pids != -1]  # junk is no part of the evaluation
    found = [(pid, pids[results[path]["indices"]]) for path, pid in zip(paths, pids, strict=True) if pid != -1]
    wrong = sum(int(((others != pid) & (others != -1)).sum()) for pid, others in found)
    most = 0.01 * (known[:, None] != known).sum()
    assert 0.9 * most < wrong <= 1.001 * most  # the queries were embedded anew
    script_error(get_similar.main, "--gallery_data", gallery, *far, *given)
    assert capsys.readouterr().err == (
        f"error: the thresholds in {tmp_path / 'metrics.json'} are of embeddings of unit length (--normalize), but "
        "this search lacks --normalize_features. Make the table with the settings of the search.\n"
    )


def test_min_probability(gallery, recorded_images, legacy_checkpoint, tmp_path, capsys, caplog):
    """By the calibration of an evaluation of the very gallery, in whose folder it is found."""
    folder = shutil.copytree(gallery, tmp_path / "gallery")
    pids = np.array([int(path.rsplit("/", 1)[1].split("_")[0]) for path in np.load(folder / "paths.npy")])
    np.save(folder / "pids.npy", pids)
    files = ["--query", str(folder), "--gallery", str(folder), "--ignore-cameras", "--calibrate", "isotonic"]
    given = keys(sorted((recorded_images / "query").iterdir())[3], legacy_checkpoint, tmp_path / "out")
    search = ["--gallery_data", folder, "--topk", "0", "--min-probability", "0.6"]
    script_error(get_similar.main, *search, *given)
    assert "error: --min-probability needs --calibration FILE" in capsys.readouterr().err
    assert evaluate.main([*files, "--prior", "0.5", "--output", str(folder)]) == 0
    calibration = read_calibration(folder / "calibration.json")
    assert calibration.network["weights"]

    get_similar.main([*map(str, search), "--format", "npy,csv", *given])
    (found,) = np.load(tmp_path / "out" / "results.npy", allow_pickle=True).item().values()
    assert 0 < len(found["indices"]) < len(pids)
    np.testing.assert_array_equal(found["probabilities"], calibration.probability(found["distances"]))
    assert found["probabilities"].min() >= 0.6
    get_similar.main(["--gallery_data", str(folder), "--topk", "0", *given])
    (everything,) = np.load(tmp_path / "out" / "results.npy", allow_pickle=True).item().values()
    assert list(everything) == ["indices", "paths", "distances"]
    assert (calibration.probability(everything["distances"]) >= 0.6).sum() == len(found["indices"])

    write_calibration(folder, replace(calibration, network={}).to_dict())
    caplog.set_level("INFO")
    get_similar.main([*map(str, search), *given])
    unsaid = f"{folder}/calibration.json does not say of which network it is; it must be that of the queries."
    assert caplog.messages.count(unsaid) == 1

    about = json.loads((folder / "gallery.json").read_text())
    (folder / "gallery.json").write_text(json.dumps({**about, "pid_from": "parent"}))
    capsys.readouterr()
    script_error(get_similar.main, *search, *given)
    assert capsys.readouterr().err.endswith(
        f"error: the calibration in {folder}/calibration.json is of pairs of images, but {folder} holds centroids of "
        "identities; create it with MODEL.USE_CENTROIDS False.\n"
    )
    (folder / "gallery.json").write_text(json.dumps(about))

    other = replace(calibration, network={**calibration.network, "weights": "0123456789abcdef"})
    write_calibration(folder, other.to_dict())
    capsys.readouterr()
    script_error(get_similar.main, *search, *given)
    assert capsys.readouterr().err.endswith(
        f"error: the calibration in {folder}/calibration.json is of embeddings with weights 0123456789ab..., but here "
        f"it is {calibration.network['weights'][:12]}...: make one of this network's embeddings (python -m evaluation "
        "--calibrate isotonic --output DIR).\n"
    )


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
        *("INPUT.SIZE_TEST", "[32, 32]", "MODEL.NAME", "resnet50", "MODEL.LAST_STRIDE", "2", "TEST.FEAT_NORM", "True"),
        *("TRAINER.PRECISION", "bf16-true"),
    ]
    create_embeddings.main(given)
    assert [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()] == [
        "MODEL.NAME: 'resnet18' in the checkpoint, which is used, 'resnet50' here.",
        "MODEL.LAST_STRIDE: 1 in the checkpoint, which is used, 2 here.",
        "INPUT.SIZE_TEST: [64, 32] in the checkpoint, [32, 32] here, which is used.",
    ]
    assert "TEST.FEAT_NORM: not used in inference." in caplog.text
    caplog.clear()
    create_embeddings.main([*given, "DATASETS.ON_ERROR", "skip", "DATASETS.CSV_PATH", "a.csv", "GPU_IDS", "[1]"])
    lines = [record.getMessage() for record in caplog.records]
    assert "DATASETS.CSV_PATH, DATASETS.ON_ERROR, TEST.FEAT_NORM: not used in inference." in lines
    assert "GPU_IDS [1] has no effect: the run does not compute on CUDA." in lines
    about = json.loads((tmp_path / "gallery.json").read_text())
    assert (about["embedder"]["size"], about["embedder"]["dtype"]) == ([32, 32], "bfloat16")


def test_a_search_by_another_distance_than_the_checkpoints_is_said_unless_it_is_asked_for(
    gallery, pictures, legacy_checkpoint, tmp_path, caplog
):
    content = torch.load(legacy_checkpoint, weights_only=False)
    content["hyper_parameters"]["SOLVER"]["DISTANCE_FUNC"] = "cosine"
    torch.save(content, tmp_path / "cosine.ckpt")
    given = ["--gallery_data", str(gallery), *keys(pictures, tmp_path / "cosine.ckpt", tmp_path / "out")]
    line = "SOLVER.DISTANCE_FUNC: 'cosine' in the checkpoint, 'euclidean' here by default, which is used."
    get_similar.main(given)
    assert [record.getMessage() for record in caplog.records].count(line) == 1
    caplog.clear()
    get_similar.main([*given, "SOLVER.DISTANCE_FUNC", "euclidean"])
    assert "in the checkpoint" not in caplog.text


def test_devices_that_inference_leaves_idle_are_named(legacy_checkpoint, monkeypatch, caplog):
    monkeypatch.setattr("inference.command_line.choose_devices", lambda *_: ("gpu", [98, 99]))
    with pytest.raises(UserError, match="cuda:98"):
        embedder_from_config(load_config("", ["MODEL.PRETRAIN_PATH", str(legacy_checkpoint)]))
    assert "GPU_IDS is [98, 99]; inference computes on the first of them only." in caplog.text


def test_without_a_config_file_the_script_embeds_as_the_embedder_does(pictures, legacy_checkpoint, tmp_path):
    """Size, scaling and network come from the checkpoint; paths may hold variables."""
    environment = {"PLACE": str(tmp_path), "CHECKPOINTS": str(legacy_checkpoint.parent)}
    given = ("DATASETS.ROOT_DIR", "$PLACE/pictures", "MODEL.PRETRAIN_PATH", "${CHECKPOINTS}/legacy.ckpt")
    options = ("OUTPUT_DIR", "$PLACE/out", "GPU_IDS", "[]", "TRAINER.PROGRESS_BAR", "False")
    done = run_script("inference/create_embeddings.py", *given, *options, cwd=tmp_path, env=environment)
    passed_over, said = done.stderr.splitlines()  # the folder holds a text
    assert (done.returncode, said) == (0, f"{tmp_path}/out: 7 images, 7 images embedded now")
    assert passed_over.startswith(f"Passed over in '{tmp_path}/pictures': 1 file, ")
    expected, paths = Embedder.from_checkpoint(legacy_checkpoint, "cpu").embed_folder(pictures)
    assert np.load(tmp_path / "out" / "paths.npy").tolist() == paths
    both = (normalize(torch.from_numpy(rows)) for rows in (expected, np.load(tmp_path / "out" / "embeddings.npy")))
    assert torch.stack(list(both)).prod(0).sum(1).tolist() == pytest.approx([1.0] * 7, abs=1e-6)


def test_orientation_of_images_follows_the_configuration(embedder, legacy_checkpoint, tmp_path):
    path = save_turned(tmp_path / "images" / "turned.png", 6)
    for upright in (True, False):
        out = tmp_path / str(upright)
        create_embeddings.main(
            [*keys(path.parent, legacy_checkpoint, out), "INPUT.EXIF_ORIENTATION", str(upright)],
        )
        pixels = np.ascontiguousarray(UPRIGHT[6 if upright else 1](stored_pixels()))
        np.testing.assert_allclose(np.load(out / "embeddings.npy"), embedder.embed(pixels), rtol=1e-4, atol=1e-4)
        assert json.loads((out / "gallery.json").read_text())["embedder"]["exif_orientation"] is upright


def test_resize_and_flip_are_those_of_the_checkpoint_unless_others_are_asked_for(
    embedder, pictures, legacy_checkpoint, tmp_path, caplog
):
    content = torch.load(legacy_checkpoint, weights_only=False)
    content["hyper_parameters"]["INPUT"]["RESIZE"] = "pad"
    content["hyper_parameters"]["TEST"]["FLIP"] = True
    checkpoint = tmp_path / "padded.ckpt"
    torch.save(content, checkpoint)
    create_embeddings.main(list(keys(pictures, checkpoint, tmp_path / "as_recorded")))
    assert not [record for record in caplog.records if "in the checkpoint" in record.getMessage()]
    expected = Embedder.from_checkpoint(checkpoint, "cpu")
    found = read_gallery(tmp_path / "as_recorded")
    assert (found.about["embedder"]["resize"], found.about["embedder"]["flip"]) == ("pad", True)
    assert found.about["embedder"] == expected.identity
    np.testing.assert_allclose(found.embeddings, expected.embed(list(found.paths)), rtol=1e-4, atol=1e-4)

    given = [*keys(pictures, checkpoint, tmp_path / "otherwise"), "INPUT.RESIZE", "stretch", "TEST.FLIP", "False"]
    create_embeddings.main(given)
    assert [record.getMessage() for record in caplog.records if "in the checkpoint" in record.getMessage()] == [
        "INPUT.RESIZE: 'pad' in the checkpoint, 'stretch' here, which is used.",
        "TEST.FLIP: True in the checkpoint, False here, which is used.",
    ]
    otherwise = read_gallery(tmp_path / "otherwise")
    np.testing.assert_allclose(otherwise.embeddings, embedder.embed(list(found.paths)), rtol=1e-4, atol=1e-4)
    assert abs(otherwise.embeddings - found.embeddings).max() > 0.1
    # The query is embedded as the gallery was, or the difference is said.
    search = ["--gallery_data", str(tmp_path / "as_recorded"), *keys(pictures, checkpoint, tmp_path / "similar")]
    caplog.clear()
    get_similar.main(search)
    assert "distances between them may mean little" not in caplog.text
    np.testing.assert_allclose(
        np.load(tmp_path / "similar/query_embeddings.npy"), found.embeddings, rtol=1e-4, atol=1e-4
    )
    get_similar.main([*search, "TEST.FLIP", "False"])
    assert "differ in flip; distances between them may mean little" in caplog.text


@pytest.mark.slow
def test_what_is_passed_over_is_said_once(pictures, legacy_checkpoint, tmp_path):
    """By the real program, in whose folder its own results lie as well."""
    (pictures / "a_0.png").rename(pictures / "a_0.GIF")
    draw_picture(pictures / "below" / "x.png", 1)
    said = f"Passed over in '{pictures}': 1 file, '{pictures}/notes.txt', without the name of an image (.jpg, "
    for _ in range(2):
        done = run_script("inference/create_embeddings.py", *keys(pictures, legacy_checkpoint, pictures))
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "Passed over" in line]
        assert line.startswith(said)
        assert line.endswith(f"; 1 image, '{pictures}/below/x.png', in subfolders: --images-in-subfolders takes those.")
        assert f"{pictures}/a_0.GIF" in np.load(pictures / "paths.npy").tolist()


def test_killed_and_resumed(gallery, recorded_images, legacy_checkpoint, tmp_path, caplog):
    """A real kill of a real program, which is run from inference/ as its readers may do."""
    out = tmp_path / "out"
    given = keys(recorded_images / "bounding_box_test", legacy_checkpoint, out)
    given = [*given, "TEST.IMS_PER_BATCH", "4", "--chunk-size", "8"]
    command = ("create_embeddings.py", *given)
    with start_python(*command, cwd=ROOT / "inference", stderr=subprocess.PIPE) as running:
        parts = out / "embeddings.parts"
        deadline = time.monotonic() + 120
        while len(list(parts.glob("*.json"))) < 2:
            assert running.poll() is None and time.monotonic() < deadline, running.stderr.read()
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    assert {path.name for path in out.iterdir()} == {"embeddings.run.json", "embeddings.parts"}
    finished = 8 * len(list(parts.glob("*.json")))
    assert 16 <= finished < 395
    caplog.set_level("INFO")
    create_embeddings.main([*given, "--resume"])
    assert f"{finished} images are already embedded, {395 - finished} are left." in caplog.messages
    assert caplog.messages[-1] == f"{out}: 395 images, {395 - finished} images embedded now"
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


def load(folder, *names):
    return [np.load(folder / f"{name}.npy") for name in names]


@pytest.mark.parametrize("subset", ["query", "gallery"])
def test_images_of_a_known_set(gallery, recorded_images, legacy_checkpoint, tmp_path, subset):
    given = keys(recorded_images.parent, legacy_checkpoint, tmp_path)
    create_embeddings.main(["--split", subset, *given, "DATASETS.NAMES", "market1501"])
    rows, paths, pids, camids = load(tmp_path, "embeddings", "paths", "pids", "camids")
    names = [path.rsplit("/", 1)[1] for path in paths]
    assert pids.tolist() == [int(name.split("_")[0]) for name in names]
    of_name = [int(name.split("_c")[1].split("s")[0]) for name in names]
    assert camids.tolist() in ([camera - 1 for camera in of_name], of_name)
    assert (pids.dtype, camids.dtype) == (np.int64, np.int64)
    if subset == "query":
        assert len(rows) == len(names) == len(list((recorded_images / "query").glob("*.jpg")))
    else:
        expected = dict(zip(*load(gallery, "paths", "embeddings"), strict=True))
        assert set(paths) == {path for path in expected if "/-1_" not in path}  # junk is no part of the gallery
        np.testing.assert_allclose(rows, [expected[path] for path in paths], rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "gallery.json").read_text())["source"]["subset"] == subset


class NamedPeople(ReidDataModule):
    """A data set whose identities and cameras have names; the training images are numbered apart."""

    one_numbering = False
    title = "named people"

    def read_splits(self):
        paths = sorted(map(str, Path(self.cfg.DATASETS.ROOT_DIR).glob("*.png")))
        labels = [(0, 0), (1, 1), (0, 1), (2, 0), (1, 0), (0, 2), (7, 2)]
        images = [(path, *label) for path, label in zip(paths, labels, strict=True)]
        names = Names({0: "ann", 1: "11", 2: "bö"}, {0: "1", 1: "2", 2: "04"})
        return Splits(images[:3], images[3:5], images[4:], names=names, notes=("One file was passed over.",))


def test_names_and_notes_of_a_data_set(pictures, legacy_checkpoint, tmp_path, caplog):
    name = f"{__name__}:NamedPeople"

    def labels(subset):
        caplog.clear()
        given = keys(pictures, legacy_checkpoint, tmp_path / subset)
        create_embeddings.main(["--split", subset, *given, "DATASETS.NAMES", name])
        assert caplog.text.count("One file was passed over.") == 1
        return [values.tolist() for values in load(tmp_path / subset, "pids", "camids")]

    # Text although the identities of the queries alone would be numbers: those of the gallery are not.
    assert labels("query") == [["bö", "11"], [1, 1]]
    assert labels("gallery") == [["11", "ann", "7"], [1, 4, 4]]
    assert labels("train") == [[0, 1, 0], [0, 1, 1]]


def test_names_that_are_one_number_stay_apart(pictures, legacy_checkpoint, tmp_path):
    """7 and 007 are two identities in a table that has names as well; as numbers they would be one."""
    rows = [("c_2", "007", "gallery"), ("a_0", "7", "gallery"), ("b_1", "7", "query"), ("a_3", "ann", "train")]
    table = tmp_path / "data.csv"
    table.write_text(
        "path,pid,split\n" + "".join(f"pictures/{name}.png,{pid},{subset}\n" for name, pid, subset in rows)
    )
    for subset, pids in (("gallery", ["007", "7"]), ("query", ["7"])):
        given = keys("", legacy_checkpoint, tmp_path / subset)
        create_embeddings.main(["--csv", str(table), "--split", subset, "DATASETS.NAMES", "csv", *given])
        assert load(tmp_path / subset, "pids")[0].tolist() == pids


def test_images_of_a_table(pictures, legacy_checkpoint, tmp_path, capsys):
    """A real table to embeddings with labels, by the real program; paths are relative to the table."""
    rows = [("c_2", 7, 3, "gallery"), ("a_0", 7, 1, "gallery"), ("b_1", 12, 3, "gallery"), ("a_3", 12, 1, "query")]
    table = tmp_path / "data.csv"
    lines = [f"pictures/{name}.png,{pid},{camid},{subset}" for name, pid, camid, subset in rows]
    table.write_text("path,pid,camid,split\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    keys_without_root = ("MODEL.PRETRAIN_PATH", legacy_checkpoint, "MODEL.NAME", "resnet18", "OUTPUT_DIR", out, *SIZE)
    program = ("inference/create_embeddings.py", "--csv", table, "--split", "gallery")
    done = run_script(*program, *keys_without_root, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        f"{table}, gallery: 3 images",
        f"{out}: 3 images, 3 images embedded now",
    ]
    paths, pids, camids = (values.tolist() for values in load(out, "paths", "pids", "camids"))
    assert paths == [str(pictures / f"{name}.png") for name, *_ in rows[:3]]
    assert pids == [7, 7, 12]
    assert camids in ([3, 1, 3], [1, 0, 1])  # as the table has them, or numbered
    assert json.loads((out / "gallery.json").read_text())["source"] == {"data_set": str(table), "subset": "gallery"}

    for arguments, message in (
        (("--csv", table), "--csv needs --split"),
        (("--csv", table, "--split", "train"), "has no train images"),
        (("--csv", tmp_path / "no.csv", "--split", "query"), "no.csv does not exist"),
        (("--csv", table, "--split", "test"), "invalid choice: 'test'"),
        (("--csv", table, "--split", "query", "--images-in-subfolders"), "exclude each other"),
        (
            ("--csv", table, "--split", "query", "DATASETS.NAMES", "market1501"),
            f"--csv {table} and DATASETS.NAMES market1501 name two data sets; give one of them.",
        ),
        (
            ("--csv", table, "--split", "query", "DATASETS.CSV_PATH", "b.csv"),
            f"--csv {table} and DATASETS.CSV_PATH b.csv name two data sets",
        ),
        (("--csv", table, "--split", "query", "MODEL.USE_CENTROIDS", "True"), "MODEL.USE_CENTROIDS is True; set it"),
    ):
        script_error(create_embeddings.main, *arguments, *keys_without_root)
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert load(out, "pids")[0].tolist() == [7, 7, 12]


def test_query_and_gallery_have_folders_of_their_own(pictures, legacy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for subset in ("query", "gallery"):
        given = ["--split", subset, *keys(pictures, legacy_checkpoint, ""), "DATASETS.NAMES", f"{__name__}:NamedPeople"]
        create_embeddings.main(given)
    (folder,) = (tmp_path / "logs").iterdir()
    assert {path.name: len(np.load(path / "pids.npy")) for path in folder.iterdir()} == {"query": 2, "gallery": 3}


def results_of(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {line["query"]: line["results"] for line in map(json.loads, lines)}


@pytest.mark.slow
def test_the_query_and_its_camera_are_left_out(gallery, recorded_images, legacy_checkpoint, tmp_path):
    """The gallery's own images as queries, by the real program: without the options each finds itself first."""
    root = recorded_images / "bounding_box_test"
    given = ["--gallery_data", gallery, "--topk", "5", "--format", "jsonl", "--exclude-self"]
    given += keys(root, legacy_checkpoint, tmp_path)
    done = run_script("inference/get_similar.py", *given, "MODEL.NAME", "resnet18")
    assert done.returncode == 0, done.stderr
    first = results_of(tmp_path)
    assert len(first) == 395
    copies = Counter(path.read_bytes() for path in root.glob("*.jpg"))  # some of the recorded images are there twice
    itself = sum(times**2 for times in copies.values())
    assert f"results left out: {itself} of the query itself" in done.stderr.splitlines()
    for query, found in first.items():
        assert [result["rank"] for result in found] == [1, 2, 3, 4, 5]
        assert query not in {result["path"] for result in found}

    pattern = r"_c(\d)s"
    given += ["--other-cameras", "--camid-from", pattern]
    done = run_script("inference/get_similar.py", *given, "MODEL.NAME", "resnet18")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("results left out: ")]
    assert re.fullmatch(rf"results left out: {itself} of the query itself, \d+ from the query's own camera", line)
    for query, found in results_of(tmp_path).items():
        cameras = {re.search(pattern, path)[1] for path in (query, *(result["path"] for result in found))}
        others = {re.search(pattern, result["path"])[1] for result in found}
        assert len(found) == 5
        assert re.search(pattern, query)[1] in cameras - others


def test_cameras_of_a_table(pictures, legacy_checkpoint, tmp_path, capsys):
    """a_0 to a_6 with two cameras, one of them with a comma in its name."""
    out, found = tmp_path / "out", tmp_path / "found"
    create_embeddings.main([*keys(pictures, legacy_checkpoint, out)])
    names = sorted(path.name for path in pictures.glob("*.png"))
    table = tmp_path / "cameras.csv"
    rows = [
        f'pictures/{name},"door, left"' if number < 4 else f"pictures/{name},2" for number, name in enumerate(names)
    ]
    table.write_text("path,camid\n" + "\n".join(rows) + "\n")
    given = ["--gallery_data", out, "--topk", "0", "--format", "jsonl", *keys(pictures, legacy_checkpoint, found)]
    given = [str(argument) for argument in given]
    get_similar.main([*given, "--other-cameras", "--camid-from", str(table)])
    results = results_of(found)
    for number, name in enumerate(names):
        wanted = names[4:] if number < 4 else names[:4]
        assert sorted(Path(one["path"]).name for one in results[str(pictures / name)]) == wanted

    table.write_text("path,camid\n" + "\n".join(rows[:6]) + "\n")
    twice = tmp_path / "twice.csv"
    twice.write_text("path,camid\na.png,1\na.png,2\n")
    last = pictures / names[6]
    create_embeddings.main([*keys(pictures, legacy_checkpoint, tmp_path / "people"), "MODEL.USE_CENTROIDS", "True"])
    of_people = ["--gallery_data", str(tmp_path / "people"), *given[2:]]
    capsys.readouterr()
    for arguments, message in (
        ((*given, "--other-cameras", "--camid-from", table), f"{last} has no camera in {table}, in which relative"),
        (
            (*given, "--other-cameras", "--camid-from", twice),
            f"{twice}, line 3: a.png has the camera '2', but '1' in an",
        ),
        ((*given, "--other-cameras", "--camid-from", "_c(1)"), "a_0.png: --camid-from '_c(1)' finds no camera in 'a_"),
        ((*given, "--other-cameras", "--camid-from", "_c("), "--camid-from '_c(' is not a regular expression"),
        ((*given, "--other-cameras", "--camid-from", "no.csv"), "no.csv does not exist"),
        ((*given, "--other-cameras"), "--other-cameras and --camid-from need each other"),
        ((*given, "--camid-from", "_c(1)"), "--other-cameras and --camid-from need each other"),
        ((*of_people, "--exclude-self"), "--exclude-self needs a gallery of images, but"),
        ((*of_people, "--other-cameras", "--camid-from", "."), "--other-cameras needs a gallery of images, but"),
    ):
        script_error(get_similar.main, *arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.slow
def test_the_line_at_the_end_says_what_the_contact_sheet_leaves_out(gallery, pictures, legacy_checkpoint, tmp_path):
    """By the real program, which says but once what it passes over although it lists the queries twice."""
    given = ["--gallery_data", gallery, "--html", "--exclude-self", *keys(pictures, legacy_checkpoint, tmp_path)]
    done = run_script("inference/get_similar.py", *given)
    passed_over, left_out, last = done.stderr.splitlines()
    assert passed_over.startswith("Passed over in ")
    assert left_out == "results left out: none"
    files = f"{tmp_path}/results.npy, {tmp_path}/results.html"
    assert last == f"7 queries against 395: {files} (shows 7 of 7 queries, with 20 of 100 results each)"
    done = run_script("inference/get_similar.py", *given, "--topk", "20")
    assert done.stderr.splitlines()[-1] == f"7 queries against 395: {files}"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_file_of_torchreid_embeds_as_it_is(pictures, tmp_path):
    """create_embeddings.py, a real program, and the Embedder give torchreid's 512 numbers."""
    recorded = golden("osnet_given")
    network = get_backbone("osnet_x0_25").build(NetworkOptions())
    weights = fill_by_recipe(network.state_dict()) | {"classifier.weight": torch.ones(10, 512)}
    network.load_state_dict(weights, strict=False)
    path = tmp_path / "model.pth.tar-60"
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 60}, path)
    given = (*keys(pictures, path, tmp_path / "out"), "GPU_IDS", "[]", "INPUT.SIZE_TEST", "[128, 64]")
    named = ("MODEL.NAME", "osnet_x0_25", "MODEL.BACKBONE_EMB_SIZE", "512")
    done = run_script("inference/create_embeddings.py", *given, *named, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count(f"{path} holds torchreid osnet_x0_25 weights, not a trained CTL model: embeddings are") == 1
    )
    embedder = Embedder.from_checkpoint(path, "cpu", network="osnet_x0_25", size=(128, 64))
    found = embedder.embed(torch.from_numpy(recorded["x"]))
    assert (embedder.dimension, found.shape) == (512, (4, 512))
    np.testing.assert_allclose(found[:, ::4], recorded["osnet_x0_25_embedding"], rtol=2e-5, atol=1e-6)  # BN's 1 + eps
    written = np.load(tmp_path / "out" / "embeddings.npy")
    np.testing.assert_allclose(embedder.embed(np.load(tmp_path / "out" / "paths.npy").tolist()), written, rtol=1e-5)


def test_another_programs_resnet_gives_its_own_features_with_the_relu_of_its_stem(pictures, tmp_path):
    """A fast-reid file, and torchvision's own layers as the oracle."""
    oracle = resnet18(weights=None).eval()
    oracle.fc = torch.nn.Identity()
    oracle.load_state_dict(fill_by_recipe(oracle.state_dict()))
    path = tmp_path / "model_best.pth"
    torch.save({"model": {f"backbone.{key}": value for key, value in oracle.state_dict().items()}}, path)
    options = ["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", "512", "MODEL.PRETRAIN_PATH", str(path)]
    options += ["MODEL.LAST_STRIDE", "2", "MODEL.STEM_RELU", "True", "TRAINER.ACCELERATOR", "cpu"]
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        expected = oracle(images).numpy()
    found = embedder_from_config(load_config("", options)).embed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    in_a_program = Embedder.from_checkpoint(path, "cpu", cfg=load_config("", options))
    np.testing.assert_array_equal(in_a_program.embed(images), found)
    other = embedder_from_config(load_config("", [*options, "MODEL.STEM_RELU", "False"])).embed(images)
    assert np.abs(other - expected).max() > 5e-3 * np.abs(expected).max()


def test_weights_of_a_network_of_timm_embed_by_its_name_alone(tmp_path):
    network = timm.create_model("test_convnext", num_classes=0).eval()
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path)
    images = torch.rand(2, 3, 64, 32)
    with torch.inference_mode():
        expected = network(images)
    found = Embedder.from_checkpoint(path, "cpu", network="timm:test_convnext").embed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # a new BN neck's eps


def test_galleries_in_several_files_and_unfinished_ones(pictures, legacy_checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    large = (
        *keys(pictures, legacy_checkpoint, tmp_path / "g"),
        "GALLERY.DTYPE",
        "float16",
        "GALLERY.ROWS_PER_FILE",
        "3",
    )
    create_embeddings.main(list(large))
    found = read_gallery(tmp_path / "g")
    assert ([len(array) for array in found.embeddings.arrays], found.embeddings.dtype) == ([3, 3, 1], np.float16)
    assert any(line.startswith("float16: recall@6 ") for line in caplog.messages)
    search = ["--gallery_data", tmp_path / "g", "--exclude-self", "--format", "npy,csv", "--html", "--topk", "2"]
    search = [str(argument) for argument in (*search, *keys(pictures, legacy_checkpoint, tmp_path / "similar"))]
    get_similar.main(search)
    results = np.load(tmp_path / "similar" / "results.npy", allow_pickle=True).item()
    paths = list(found.paths)
    assert list(results) == paths
    assert all(len(row["paths"]) == 2 and path not in row["paths"] for path, row in results.items())

    about = {**found.about, "source": None, "files": ""}
    source = FileList(paths, about, chunk_size=4)
    shutil.rmtree(tmp_path / "g")
    EmbeddingRun.start(tmp_path / "g", {"about": about, "base": None, "launch": None}, source)
    part = PartWriter(tmp_path / "g", 0, found.embeddings.shape[1])
    part.add(np.asarray(found.embeddings[:4], np.float32), paths[:4], [], [])
    part.finish()
    get_similar.main(search)
    assert caplog.messages.count("The gallery is not finished: searching its first 4 images.") == 1
    results = np.load(tmp_path / "similar" / "results.npy", allow_pickle=True).item()
    assert {path for row in results.values() for path in row["paths"]} <= set(paths[:4])
