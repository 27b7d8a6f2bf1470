"""The page of a comparison."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.compare_page import write_page

QUERY = {"query": "3", "path": "", "pid": "<7>", "AP_A": 0.25, "AP_B": 0.75, "rank_A": 4, "rank_B": 1}
DOCUMENT = {
    "A": "<a>/per_query.csv", "B": "b", "protocol": "instance", "paired_by": "path", "queries": 3, "identities": 2,
    "left_out": 0, "level": 0.9, "resamples": 10, "permutations": 20, "differs": {"settings.x": ["<i>", 1]},
    "metrics": {
        "mAP": {"A": 0.5, "B": 0.75, "difference": 0.25, "interval": [0.1, 0.3], "p_value": 0.04},
        "Top-1": {"A": 0.5, "B": 0.25, "difference": -0.25, "interval": [-0.3, -0.1], "p_value": 0.05},
        "mINP": {"A": 0.5, "B": 0.75, "difference": 0.25, "interval": [-0.1, 0.3], "p_value": 0.06},
        "Top-5": {"A": 0.5, "B": 0.75, "difference": 0.25, "interval": [0.1, 0.3], "p_value": 0.11},
    },
}  # fmt: skip


@pytest.fixture
def text(tmp_path):
    def write(gained=(), lost=(), queries=(QUERY,)):
        path = write_page(tmp_path / "c.html", DOCUMENT, queries, {"gained": gained, "lost": lost})
        return path.read_text(encoding="utf-8")

    return write


def test_differences_are_marked_where_interval_and_p_value_agree(text):
    page = text()
    assert '<td class="right">+25.00</td><td>[+10.00, +30.00]</td><td>0.04</td>' in page
    assert '<td class="wrong">-25.00</td><td>[-30.00, -10.00]</td><td>0.05</td>' in page
    assert "<td>+25.00</td><td>[-10.00, +30.00]</td><td>0.06</td>" in page
    assert "<td>+25.00</td><td>[+10.00, +30.00]</td><td>0.11</td>" in page
    assert "near the edge they can disagree. A difference has a colour where both agree: the interval" in page
    assert "p is at most 0.1.</p>" in page
    assert '<th scope="col">90% interval</th>' in page
    assert "<title>Two evaluations compared</title>" in page
    assert "Bootstrap of 10, permutation test of 20 draws" in page


def test_text_of_users_is_escaped_and_every_element_is_closed(text):
    page = text([QUERY, QUERY | {"path": "\udcfc.jpg"}], [QUERY | {"AP_B": 0.1, "path": "<b>.jpg"}])
    assert ">?.jpg</h2>" in page
    for raw in ("<7>", "<a>/", "<i>", "<b>"):
        assert raw not in page
    assert "&lt;7&gt;" in page and "&lt;b&gt;.jpg" in page
    opened = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br", "img"):
                opened.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Balanced().feed(page)
    assert opened == []


def test_queries_have_a_dot_and_their_images_where_these_are(text, tmp_path):
    Image.new("RGB", (8, 16)).save(tmp_path / "q.png")
    page = text([QUERY | {"path": str(tmp_path / "q.png")}, QUERY | {"path": "gone.jpg"}], [], [QUERY, QUERY])
    assert page.count('<img src="data:image/jpeg;base64,') == 1
    assert "Queries that gained most: 2 are shown" in page and "Queries that lost most" not in page
    assert 'class="dots" d="M80 80h0"' in page  # a quarter to the right, three quarters upwards, once
    assert "<dd>25.0% to 75.0%</dd>" in page and "<dd>rank 4 to 1</dd>" in page
