"""Files that an evaluation writes."""

import csv
import html.parser
import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import evaluate_embeddings, metrics_dict
from evaluation.pages import write_index
from evaluation.ranked_images import rank_for_display, render_rankings
from evaluation.retrieval import RetrievalSet
from evaluation.tables import describe, write_evaluation
from utils.errors import UserError


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    pids, camids = np.r_[rng.integers(0, 5, 11), 77, rng.integers(0, 5, 40)], rng.integers(0, 3, 52)
    feats = (rng.normal(size=(78, 4))[pids] + 0.7 * rng.normal(size=(52, 4))).astype(np.float32)
    return feats[:12], feats[12:], pids[:12], pids[12:], camids[:12], camids[12:]


def test_metrics_and_table(data, tmp_path):
    results = [evaluate_embeddings(*data, protocol=protocol) for protocol in ("centroid", "centroid_strict")]
    paths = [f"bilder/{i},ä.jpg" for i in range(12)]
    out = tmp_path / "a" / "evaluation"
    metrics, table = write_evaluation(out, results, RetrievalSet(*data, q_paths=paths), {"metric": "euclidean"})
    assert sorted(out.iterdir()) == [metrics, table]
    document = json.loads(metrics.read_text(encoding="utf-8"))
    assert {key: document[key] for key in metrics_dict(*results)} == metrics_dict(*results)
    assert document["settings"] == {"metric": "euclidean"}
    assert document["protocols"]["centroid_strict"]["queries_without_match"] == results[1].num_skipped > 0
    assert "reciprocal rank" in document["protocols"]["centroid_strict"]["note"]
    assert len(document["protocols"]["centroid"]["cmc"]) == 50
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for result in results:
        own = [row for row in rows if row["protocol"] == result.protocol]
        assert [row["path"] for row in own] == paths
        assert [int(row["camera"]) for row in own] == data[4].tolist()
        assert own[11]["AP"] == own[11]["first_match_rank"] == ""
        valid = [row for row in own if row["AP"]]
        assert [int(row["query"]) for row in valid] == result.query_index.tolist()
        np.testing.assert_allclose([float(row["AP"]) for row in valid], result.average_precision, atol=1e-6)
        assert [int(row["first_match_rank"]) for row in valid] == result.first_match.tolist()
        assert [int(row["relevant"]) for row in valid] == result.num_relevant.tolist()


def test_without_paths(data, tmp_path):
    _, table = write_evaluation(tmp_path, [evaluate_embeddings(*data)], RetrievalSet(*data))
    assert table.read_text().splitlines()[1].startswith("instance,0,,")


def test_lengths_that_do_not_agree(data, tmp_path):
    with pytest.raises(UserError, match="q_camids has 3 entries"):
        RetrievalSet(*data[:4], data[4][:3], data[5])
    with pytest.raises(UserError, match="g_camids has 3 entries"):
        RetrievalSet(*data[:5], data[5][:3])
    with pytest.raises(UserError, match="q_paths has 1 entries"):
        RetrievalSet(*data, q_paths=["a"])
    with pytest.raises(UserError, match="g_paths has 1 entries"):
        RetrievalSet(*data, g_paths=["a"])
    fewer = RetrievalSet(data[0][:3], data[1], data[2][:3], data[3], data[4][:3], data[5])
    with pytest.raises(UserError, match="retrieval has 3 entries but the evaluation has 12"):
        write_evaluation(tmp_path, [evaluate_embeddings(*data)], fewer)


def test_described_with_what_mean_ap_means(data):
    assert "reciprocal" not in describe(evaluate_embeddings(*data))
    text = describe(evaluate_embeddings(*data, protocol="centroid_strict"))
    assert "strict protocol" in text
    assert "1 without a match left out" in text
    assert "mAP is the mean reciprocal rank" in text


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
