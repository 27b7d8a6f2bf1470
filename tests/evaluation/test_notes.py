"""What stands beside the numbers: inflated ones are never alone, and no camera is spoken of where there are none."""

import json

import numpy as np
import pytest

from evaluation.metrics import evaluate, evaluate_distances
from evaluation.pages import write_page
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.self_matches import SelfMatches
from evaluation.tables import describe, write_evaluation
from evaluation.verification import roc_table
from utils.errors import NoValidQueryError

INFLATED = (
    "inflated by the published code's camera look-up error; use strict_mAP and strict_Top-k of the strict protocol"
)


@pytest.fixture
def two_cameras():
    """60 identities before two cameras. An embedding tells nothing of the identity, but all of the camera's images of
    it are near copies, some of which the look-up error takes for images from the other camera.
    """
    rng = np.random.default_rng(0)
    pids, camids = np.repeat(np.arange(60), 6), np.tile([0, 0, 0, 1, 1, 1], 60)
    feats = rng.normal(size=(120, 8))[2 * pids + camids] + 0.1 * rng.normal(size=(360, 8))
    is_query = np.tile([True, False, False], 120)
    rest = ~is_query
    labels = (pids[is_query], pids[rest], camids[is_query], camids[rest])
    return RetrievalSet(feats[is_query], feats[rest], *labels, [f"{i}.jpg" for i in range(120)])


def results_of(retrieval, keep_camids=True):
    names = ("centroid_strict", "centroid")
    return [evaluate(retrieval, RankingOptions(protocol=name, keep_camids=keep_camids)) for name in names]


def test_the_line_of_inflated_numbers_says_so(two_cameras):
    strict, published = results_of(two_cameras)
    line = describe(published).splitlines()[1]
    assert line.startswith(f"    mAP {published.mAP:.2%}  Top-1 ")
    assert line.endswith(f"({INFLATED})")
    assert published.mAP > 0.3 > 3 * strict.mAP
    assert "inflated" not in describe(strict)


def test_metrics_json_says_so_first(two_cameras, tmp_path):
    strict, published = results_of(two_cameras)
    text = write_evaluation(tmp_path, [strict, published], two_cameras)[0].read_text()
    document = json.loads(text)
    assert next(iter(document)) == "caveat"
    assert document["caveat"] == f"mAP and Top-k are {INFLATED}."
    assert list(document["protocols"]) == ["centroid_strict", "centroid"]
    assert document["protocols"]["centroid"]["note"].endswith(f"The scores are {INFLATED}.")
    other_way_round = write_evaluation(tmp_path, [published, strict], two_cameras)[0].read_text()
    assert json.loads(other_way_round)["caveat"] == document["caveat"]
    # mAP is that of single images here.
    instance = evaluate(two_cameras)
    document = json.loads(write_evaluation(tmp_path, [strict, published, instance], two_cameras)[0].read_text())
    assert "caveat" not in document
    assert document["mAP"] == instance.mAP


def test_a_page_says_so_beside_its_numbers(two_cameras, tmp_path):
    strict, published = results_of(two_cameras)

    def page_of(result):
        options = RankingOptions(protocol=result.protocol)
        return write_page(tmp_path / "index.html", result, two_cameras, options)[0].read_text()

    page = page_of(published)
    (line,) = [line for line in page.splitlines() if f"<dd>{published.mAP:.2%} [" in line]
    assert INFLATED.replace("'", "&#x27;") in line
    assert "inflated" not in page_of(strict)


OWN = SelfMatches(np.array([0]), np.array([0, -1, -1]))


@pytest.mark.parametrize(
    ("protocol", "more", "note", "caveat"),
    [
        ("instance", {}, "Gallery images of the query's identity from the query's camera are removed.", ""),
        (
            "instance",
            {"has_cameras": False},
            "There are no cameras: every gallery image of the query's identity counts.",
            "",
        ),
        (
            "instance",
            {"has_cameras": False, "self_matches": OWN},
            "There are no cameras: every gallery image of the query's identity counts, except the query's own image.",
            "",
        ),
        (
            "centroid_strict",
            {},
            "One centroid for each identity; the query's own leaves out the query's camera. One item is",
            "",
        ),
        ("centroid_strict", {"has_cameras": False}, "One centroid for each identity. One item is", ""),
        (
            "centroid_strict",
            {"has_cameras": False, "self_matches": OWN},
            "One centroid for each identity; the query's own leaves out the query itself. One item is",
            "",
        ),
        ("centroid", {"has_cameras": False}, "Built as in the published code. Usually", ""),
        (
            "centroid",
            {"has_cameras": False, "self_matches": OWN},
            "Built as in the published code: a query's own image, where the gallery holds it, is part of its",
            "inflated by queries' own images, which the published code keeps in their centroids; use strict_mAP and",
        ),
    ],
)
def test_notes_speak_of_what_there_is(protocol, more, note, caveat):
    retrieval = RetrievalSet([[1.0]], [[1.0], [0.5], [0.2]], [7], [7, 7, 8], [0], [1, 1, 1], **more)
    result = evaluate(retrieval, RankingOptions(protocol=protocol))
    assert result.note.startswith(note)
    assert result.caveat.startswith(caveat) and bool(result.caveat) == bool(caveat)


def test_without_keeping_cameras_nothing_is_inflated(two_cameras):
    strict, published = results_of(two_cameras, keep_camids=False)
    assert published.mAP == strict.mAP
    assert "inflated" not in describe(published) + published.note
    assert "camera" not in strict.note


def test_given_distances_have_the_note_of_single_images():
    assert evaluate_distances([[0.5, 0.1]], [7], [7, 8], [0], [1, 1]).note.endswith("query's camera are removed.")


@pytest.mark.parametrize("function", [evaluate, roc_table])
def test_no_match_is_not_blamed_on_cameras_that_are_not_there(function):
    data = ([[1.0]], [[1.0]], [7], [8], [0], [1])
    with pytest.raises(NoValidQueryError) as error:
        function(RetrievalSet(*data, has_cameras=False))
    assert str(error.value) == (
        "No query can be evaluated: the gallery holds no image of a query's identity. Check the identities."
    )
    with pytest.raises(NoValidQueryError, match="none has a gallery item of its identity from another camera"):
        function(RetrievalSet(*data))
