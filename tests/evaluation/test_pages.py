"""The page of an evaluation: what it lists, in which order, and that it needs nothing from elsewhere."""

import base64
import html.parser
import io
import json
import re
from dataclasses import replace
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from evaluation.bootstrap import confidence_intervals
from evaluation.curves import measure_curves
from evaluation.draws import with_draws
from evaluation.embedding_map import draw_map
from evaluation.metrics import evaluate, evaluate_embeddings
from evaluation.page_data import Shown, Thumbnails, worst_first
from evaluation.pages import write_page
from evaluation.ranked_images import rank_for_display, render_rankings
from evaluation.rerank import Rerank
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.verification import roc_table
from utils.errors import UserError
from utils.labels import Names

CMC_NAME = "queries with a right result up to the rank"


class Page(html.parser.HTMLParser):
    """The elements of a page, what it would load, its texts by element, and the data of its script."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.loads, self.open, self.texts = [], [], {}
        self.feed(self.text)
        assert not self.open  # every element is closed
        self.data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text)[1])

    def handle_starttag(self, tag, attrs):
        self.loads += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(text)

    def image(self, number):
        """Name, identity, cameras and thumbnail of an image."""
        name, identity, cameras, thumbnail = self.data["images"][number]
        cameras = [self.data["cameras"][camera] for camera in cameras]
        return name, self.data["identities"][identity], cameras, thumbnail


def write(folder, retrieval, options=None, rankings=(), **more):
    result = evaluate(retrieval, options)
    path, note = write_page(folder / "index.html", result, retrieval, options, Shown(rankings, **more))
    return Page(path), note


def decoded(thumbnail):
    return Image.open(io.BytesIO(base64.b64decode(thumbnail)))


def draw_files(folder, count):
    folder.mkdir()
    files = [folder / f"<{i}> & ü </script>.png".replace("/", "") for i in range(count)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 16), (i, 0, 0)).save(file)
    return files


def test_queries_are_listed_worst_first_with_their_results(data, tmp_path):
    files = draw_files(tmp_path / "im", 52)
    retrieval = RetrievalSet(*data, q_paths=files[:12], g_paths=files[12:])
    result = evaluate(retrieval)
    rankings = rank_for_display(retrieval, topk=5, queries=range(2, 12))
    strips = render_rankings(rankings, files[:12], files[12:], tmp_path / "out" / "visrank", (32, 16))
    folder = tmp_path / "out" / "visrank"
    page, note = write(folder, retrieval, None, rankings, strips=strips, heat_maps={3: files[0]})
    assert note == "" and page.loads == []
    rows = page.data["queries"]
    listed = [int(re.match(r"<(\d+)>", page.image(row[0])[0])[1]) for row in rows]
    assert listed == worst_first(result) and listed[-1] == 11  # which has no match
    found = {int(index): i for i, index in enumerate(result.query_index)}
    by_query = {ranking.query: ranking for ranking in rankings}
    for query, (number, ap, first, relevant, results, strip, heat) in zip(listed, rows, strict=True):
        name, identity, cameras, thumbnail = page.image(number)
        assert (name, identity, cameras) == (files[query].name, str(data[2][query]), [str(data[4][query])])
        assert thumbnail >= 0 and (results is None) == (strip is None) == (query < 2)
        if query in found:
            i = found[query]
            assert ap == pytest.approx(result.average_precision[i], abs=1e-6)
            assert (first, relevant) == (result.first_match[i], result.num_relevant[i])
        else:
            assert (ap, first, relevant) == (None, None, 0)
        if results is not None:
            ranking = by_query[query]
            assert [page.image(row[0])[0] for row in results] == [files[12 + i].name for i in ranking.images]
            assert [bool(row[1]) for row in results] == ranking.right.tolist()
            np.testing.assert_allclose([row[2] for row in results], ranking.distances, rtol=1e-3)
            assert folder / unquote(strip) == strips[query]
        assert (heat is None) == (query != 3)
        if heat:
            assert (folder / unquote(heat[1])).resolve() == files[0]
            assert decoded(page.data["thumbnails"][heat[0]]).size == (64, 128)
    assert "Results are listed for 10 of 12 queries." in page.text


def test_each_image_is_stored_once_and_small(tmp_path, data):
    files = draw_files(tmp_path / "im", 52)
    retrieval = RetrievalSet(*data, q_paths=files[:12], g_paths=files[:1] * 40)
    page, _ = write(tmp_path, retrieval, None, rank_for_display(retrieval))
    assert len(page.data["thumbnails"]) == 12
    image = decoded(page.data["thumbnails"][0])
    assert (image.format, image.size) == ("JPEG", (32, 64))


def test_thumbnails_have_a_limit(tmp_path):
    files = draw_files(tmp_path / "im", 3)
    images = Thumbnails(most=2)
    assert [images.number(file) for file in (*files, files[0])] == [0, 1, -1, 0]
    assert (images.left_out, images.missing) == (1, [])


@pytest.mark.parametrize("known", [True, False])
def test_missing_files_are_counted(tmp_path, data, known):
    files = [*draw_files(tmp_path / "im", 12), *(tmp_path / f"{i}.jpg" for i in range(40))]
    paths = {"q_paths": files[:12], "g_paths": files[12:]} if known else {}
    page, note = write(tmp_path, RetrievalSet(*data, **paths))
    first = tmp_path / "0.jpg"
    expected = f"40 of 52 images cannot be shown, since their files cannot be read (the first is {first})."
    assert note == (
        expected if known else "The files of the queries and gallery are not known: images have numbers here."
    )
    assert note in "".join(page.texts["p"])
    names = [row[0] for row in page.data["images"]]
    assert names[11:13] == ([files[11].name, "0.jpg"] if known else ["query 11", "gallery image 0"])


def test_one_side_may_have_no_files(tmp_path, data):
    page, note = write(tmp_path, RetrievalSet(*data, q_paths=draw_files(tmp_path / "im", 12)))
    assert note == "The files of the gallery are not known: images have numbers here."
    assert len(page.data["thumbnails"]) == 12


def test_no_name_leaves_its_place(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    retrieval = RetrievalSet(
        [[1.0, 0]], [[0.9, 0], [0, 1]], [7], [7, 8], [0], [1, 1], [f"{evil}.png"], ["\udcff.png"] * 2,
        names=Names({7: evil, 8: "b"}, {0: evil, 1: "\udcff"}),
    )  # fmt: skip
    page, note = write(tmp_path, retrieval, None, rank_for_display(retrieval))
    assert page.text.count("<script") == page.text.count("</script>") == 2 and "alert(1)</" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text and note
    assert page.image(page.data["queries"][0][0])[1:3] == (evil, [evil])


def test_another_number_of_queries_is_refused(data, tmp_path):
    fewer = RetrievalSet(data[0][:3], data[1], data[2][:3], data[3], data[4][:3], data[5])
    with pytest.raises(UserError, match="retrieval has 3 entries but the evaluation has 12"):
        write_page(tmp_path / "index.html", evaluate_embeddings(*data), fewer)
    assert not list(tmp_path.iterdir())


def test_numbers_and_intervals(data, tmp_path):
    retrieval = RetrievalSet(*data)
    result, precision = evaluate(retrieval), measure_curves(retrieval).precision
    page, _ = write(tmp_path, retrieval)
    low, high = confidence_intervals(result)["mAP"]
    assert page.texts["dd"][0] == f"{result.mAP:.2%} [{100 * low:.2f}, {100 * high:.2f}]"
    assert "40 gallery items; [95% interval over queries, by identity]." in page.text
    assert "1 queries have no match and do not count." in page.text
    cells = page.texts["td"]
    assert cells[:2] == ["1", f"{result.topk[1]:.2%}"] and f"{precision[50]:.2%}" in cells
    table = roc_table(retrieval)
    assert cells[cells.index("0.1") :][:3] == ["0.1", f"{table.threshold[-1]:.6g}", f"{table.tar[-1]:.2%}"]
    assert "squared Euclidean distance" in page.texts["text"] and "FAR 0.1" in page.texts["text"]
    x, y = draw_map(retrieval).points.T
    np.testing.assert_allclose([row[1:3] for row in page.data["map"]], 1000 * np.stack((x, 1 - y), axis=1), atol=0.5)
    names = [f"query {i}" for i in range(12)] + [f"gallery image {i}" for i in range(40)]
    assert [page.image(row[0])[0] for row in page.data["map"]] == names and "All images, by PCA" in page.text
    assert [row[3] for row in page.data["map"]] == [1] * 12 + [0] * 40
    share = measure_curves(retrieval).cameras.mean_ap[0, 1]
    assert f">{share:.1%}</td>" in page.text and page.text.count("<td>-</td>") == 3  # no queries of the same camera


def card_of(page, title):
    """The chart of a card, and what turns a place across it into the value that its ticks name there."""
    (card,) = re.findall(rf"<article><h2>{re.escape(title)}</h2>(<svg.*?</svg>)", page.text)
    parsed = ElementTree.fromstring(card)
    ticks = [(float(t.get("x")), float(t.text.strip("%"))) for t in parsed.iter("text") if t.get("y") == "274"]
    return parsed, np.poly1d(np.polyfit(*zip(*ticks, strict=True), 1))


def line_of(parsed, kind):
    """The points of a line, [K, 2]."""
    (line,) = (path.get("d") for path in parsed.iter("path") if path.get("class") == kind and "L" in path.get("d"))
    return np.array([[float(number) for number in point.split()] for point in line[1:].split("L")])


def test_histograms_hold_all_pairs_at_their_distances(data, tmp_path):
    options = RankingOptions(metric="cosine")
    page, _ = write(tmp_path, RetrievalSet(*data), options)
    table = roc_table(RetrievalSet(*data), options)
    parsed, value = card_of(page, "Distances of pairs")
    totals = []
    middles = (table.edges[:-1] + table.edges[1:]) / 2
    for kind, counts in (("first", table.genuine), ("second", table.impostor)):
        x, y = line_of(parsed, kind).T
        height = 300 - 44 - y
        totals.append(height.sum())
        mean = (value(x) * height).sum() / height.sum()
        assert mean == pytest.approx((middles * counts).sum() / counts.sum(), abs=0.004)
        assert 40 < len(x) <= 80 and np.ptp(x) == pytest.approx(480 - 52 - 22, abs=0.1)
    assert totals[0] == pytest.approx(totals[1], rel=0.02)  # both sum to 100 %
    places = [
        float(re.match(r"M([\d.]+)", path.get("d"))[1]) for path in parsed.iter("path") if path.get("class") == "limit"
    ]
    names = [text.text for text in parsed.iter("text") if text.text.startswith("FAR")]
    low, high = value(52), value(480 - 22)
    shown = [i for i, limit in enumerate(table.threshold) if low <= limit <= high]
    assert names == [f"FAR {table.far_levels[i]:g}" for i in shown] and len(shown) > 0
    np.testing.assert_allclose([value(place) for place in places], table.threshold[shown], atol=0.003)
    words = [text.text for text in parsed.iter("text")]
    assert {"cosine distance", "share of pairs", "same identity", "different"} <= set(words)


def test_curves_are_those_of_the_numbers(data, tmp_path):
    retrieval = RetrievalSet(*data)
    page, _ = write(tmp_path, retrieval)
    parsed, _ = card_of(page, "Cumulative matching (CMC)")
    result, y = evaluate(retrieval), line_of(parsed, "first")[:, 1]
    low = float(np.floor(10 * min(0.9, result.cmc[0])) / 10)
    np.testing.assert_allclose((256 - y) / (256 - 24) * (1 - low) + low, result.cmc, atol=0.001)
    assert [t.text for t in parsed.iter("text") if t.get("y") in ("294", "12")] == ["rank", CMC_NAME]
    parsed, value = card_of(page, "Precision and recall")
    x, y = line_of(parsed, "first").T
    np.testing.assert_allclose(value(x), np.arange(101), atol=0.1)
    np.testing.assert_allclose((256 - y) / (256 - 24), measure_curves(retrieval).precision, atol=0.001)


def test_what_cannot_be_drawn_says_why(tmp_path):
    retrieval = RetrievalSet([[1.0]], [[0.9]], [7], [7], [0], [1])
    page, _ = write(tmp_path, retrieval)
    assert "there are no pairs of different identities" in page.text


def test_distances_of_reranking_are_named_so(data, tmp_path):
    page, _ = write(tmp_path, RetrievalSet(*data), RankingOptions(rerank=Rerank(4, 2)))
    assert "re-ranked distance" in page.texts["text"]


def test_centroids_have_curves_and_lists_alone(data, tmp_path):
    page, _ = write(tmp_path, RetrievalSet(*data), RankingOptions(protocol="centroid_strict"))
    assert page.texts["h2"] == ["Cumulative matching (CMC)", "Precision and recall", "Ranked lists"]
    assert "One of its images stands for a centroid." in page.text and page.data["map"] == []
    page, _ = write(tmp_path, RetrievalSet(*data))
    assert len(page.texts["h2"]) == 6 and "stands for a centroid" not in page.text


def small_page(tmp_path, **more):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 16)).save(file)
    retrieval = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 2], [file], [file, file], **more)
    return write(tmp_path, retrieval, None, rank_for_display(retrieval))[0]


def test_identities_and_cameras_by_name_or_number(tmp_path):
    page = small_page(tmp_path)
    assert page.texts["option"] == ["all", "0"] and page.data["cameras"] == ["0", "1", "2"]
    assert "Cameras are numbered from 0." in page.text
    page = small_page(tmp_path, names=Names({7: "Ann & Bob"}, {0: "door", 1: "<stairs>", 2: "yard"}))
    assert page.data["identities"] == ["Ann & Bob", "8"] and page.data["cameras"] == ["door", "<stairs>", "yard"]
    assert page.texts["option"] == ["all", "door"] and "<stairs>" in page.texts["th"]
    assert "numbered" not in page.text


def test_no_camera_is_shown_where_there_are_none(tmp_path):
    page = small_page(tmp_path, has_cameras=False)
    assert "<select" not in page.text and "Camera by camera" not in page.text and "numbered" not in page.text
    assert page.data["cameras"] == [] and all(row[2] == [] for row in page.data["images"])
    assert "There are no cameras: every gallery image of the query&#x27;s identity counts." in page.text


def test_repeated_draws_are_told_apart_from_the_first(data, tmp_path):
    retrieval = RetrievalSet(*data)
    result = evaluate(retrieval)
    drawn = next(iter(with_draws([{"instance": result}, {"instance": replace(result, mAP=0.0)}]).values()))
    said = "Other curves than the CMC, and what is told of single queries, are of the first draw."
    for one, times in ((drawn, 1), (result, 0)):
        text = write_page(tmp_path / "index.html", one, retrieval)[0].read_text(encoding="utf-8")
        assert text.count(said) == times
        assert (f"<dd>{drawn.mAP:.2%}".rstrip("%") + " ±" in text) == bool(times)
