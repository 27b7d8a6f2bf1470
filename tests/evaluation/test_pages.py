"""The page of ranked results: which queries, in which order, and that it needs nothing from elsewhere."""

import html.parser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from evaluation.metrics import evaluate, evaluate_embeddings
from evaluation.pages import write_index
from evaluation.ranked_images import rank_for_display, render_rankings
from evaluation.retrieval import RetrievalSet
from utils.errors import UserError
from utils.labels import Names


class Page(html.parser.HTMLParser):
    """Collects titles of cards, pictures, links and everything that would be loaded."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.images, self.loads, self.badges, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [attrs[key] for key in ("src", "href") if key in attrs]
        if tag == "img":
            self.images.append(attrs["src"])
        if tag == "li":
            self.badges.append(attrs["class"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "h2":
            self.titles.append(text)


def test_page_shows_the_worst_first(data, tmp_path):
    result = evaluate_embeddings(*data)
    files = [tmp_path / "im" / f"<{i}> & ü.png" for i in range(52)]
    files[0].parent.mkdir()
    for file in files:
        Image.new("RGB", (8, 16)).save(file)
    retrieval = RetrievalSet(*data, q_paths=files[:12])
    rankings = rank_for_display(retrieval, topk=5, queries=range(2, 12))
    folder = tmp_path / "out" / "visrank"
    strips = render_rankings(rankings, files[:12], files[12:], folder, (32, 16))
    page = write_index(folder / "index.html", result, rankings, strips, retrieval)
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not parsed.open
    ap = dict(zip(result.query_index.tolist(), result.average_precision.tolist(), strict=True))
    expected = sorted(range(2, 12), key=lambda i: (i not in ap, ap.get(i, 0.0)))
    assert [int(title.split(">")[0][1:]) for title in parsed.titles] == expected
    assert expected[-1] == 11  # without a match
    assert {unquote(image) for image in parsed.images} == {Path(strip).name for strip in strips.values()}
    assert all(not load.startswith(("http", "/", "file")) for load in parsed.loads)
    assert parsed.badges.count("right") == sum(int(ranking.right.sum()) for ranking in rankings)
    assert "10 of 12 queries are shown" in text


def test_another_number_of_queries_is_refused(data, tmp_path):
    fewer = RetrievalSet(data[0][:3], data[1], data[2][:3], data[3], data[4][:3], data[5])
    with pytest.raises(UserError, match="retrieval has 3 entries but the evaluation has 12"):
        write_index(tmp_path / "index.html", evaluate_embeddings(*data), [], {}, fewer)
    assert not list(tmp_path.iterdir())


def small_page(tmp_path, **more):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 16)).save(file)
    retrieval = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 2], q_paths=[file], **more)
    rankings = rank_for_display(retrieval)
    strips = render_rankings(rankings, [file], [file, file], tmp_path / "out", (32, 16))
    return write_index(tmp_path / "out/index.html", evaluate(retrieval), rankings, strips, retrieval).read_text()


def test_identities_and_cameras_by_name_or_number(tmp_path):
    text = small_page(tmp_path)
    assert "<dt>camera</dt><dd>0</dd>" in text
    assert "<small>cam 1</small>" in text and "<small>cam 2</small>" in text
    assert "Cameras are numbered from 0." in text
    text = small_page(tmp_path, names=Names({7: "Ann & Bob"}, {0: "door", 1: "<stairs>", 2: "yard"}))
    assert "<dt>identity</dt><dd>Ann &amp; Bob</dd>" in text
    assert "<dt>camera</dt><dd>door</dd>" in text
    assert "<small>cam &lt;stairs&gt;</small>" in text
    assert "numbered" not in text


def test_no_camera_is_shown_where_there_are_none(tmp_path):
    text = small_page(tmp_path, has_cameras=False)
    assert "<dt>camera" not in text and "<small>" not in text and "numbered" not in text
    assert "There are no cameras: every gallery image of the query&#x27;s identity counts." in text
