"""The page of search results: what it shows, and that it needs nothing from elsewhere."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from inference.results.contact_sheet import write_contact_sheet
from tests.support import UPRIGHT, save_turned, stored_pixels


class Page(HTMLParser):
    """The tags of a page, as (name, attributes), and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures & more"
    folder.mkdir()
    paths = []
    for i in range(6):
        paths.append(str(folder / f"p #{i} <x>.jpg"))
        Image.new("RGB", (300, 600), (40 * i, 0, 0)).save(paths[-1])
    return paths


def test_page_shows_queries_and_results(pictures, tmp_path):
    query_paths = [*pictures[:2], str(tmp_path / "gone.jpg")]
    gallery_paths = [*pictures[2:], "identity <7>"]
    indices = np.array([[1, 0, 4], [3, -1, -1], [-1, -1, -1]])
    distances = np.array([[0.5, 0.75, 1.25], [0.125, np.inf, np.inf], [np.inf] * 3], dtype=np.float32)
    path = write_contact_sheet(tmp_path / "results.html", query_paths, gallery_paths, indices, distances)
    page = Page(path)

    shown = [pictures[0], pictures[3], pictures[2], pictures[1], pictures[5]]
    assert [str((tmp_path / unquote(a["href"])).resolve()) for a in page.all("a")] == shown
    assert [a["title"] for a in page.all("a")] == shown
    for img, original in zip(page.all("img"), shown, strict=True):
        head, data = img["src"].split(",")
        assert head == "data:image/jpeg;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        assert small.size == (80, 160)
        assert abs(small.getpixel((40, 80))[0] - Image.open(original).getpixel((40, 80))[0]) <= 3
    for text in ("1. 0.5", "2. 0.75", "3. 1.25", "identity <7>", "gone.jpg", "nothing near enough", "3 queries"):
        assert text in page.text


def test_images_are_shown_upright(tmp_path):
    paths = [str(save_turned(tmp_path / f"{value}.png", value, stored_pixels(240, 160))) for value in UPRIGHT]
    indices = np.arange(8)[None]
    page = Page(write_contact_sheet(tmp_path / "results.html", paths[:1], paths, indices, np.zeros((1, 8))))
    for img, value in zip(page.all("img")[1:], UPRIGHT, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(img["src"].split(",")[1])))
        expected = Image.fromarray(np.ascontiguousarray(UPRIGHT[value](stored_pixels(240, 160))))
        expected.thumbnail((128, 160), Image.Resampling.BILINEAR)
        assert shown.size == expected.size
        assert abs(np.asarray(shown).astype(int) - np.asarray(expected)).mean() < 5


def test_page_needs_no_network(pictures, tmp_path):
    path = write_contact_sheet(tmp_path / "r.html", pictures[:1], pictures[1:], np.array([[0, 1]]), np.zeros((1, 2)))
    page = Page(path)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in path.read_text(encoding="utf-8")
    assert "url(" not in path.read_text(encoding="utf-8")


def test_damaged_pictures_are_shown_by_name(pictures, tmp_path):
    Path(pictures[1]).write_bytes(b"\xff\xd8\xff no picture")
    path = write_contact_sheet(tmp_path / "r.html", pictures[:1], pictures[1:2], np.array([[0]]), np.zeros((1, 1)))
    page = Page(path)
    assert len(page.all("img")) == 1
    assert "p #1 <x>.jpg" in page.text


def test_page_says_what_it_leaves_out(pictures, tmp_path):
    indices, distances = np.tile(np.arange(6), (5, 1)), np.zeros((5, 6))
    path = write_contact_sheet(
        tmp_path / "r.html", pictures[:5], pictures, indices, distances, max_queries=2, max_results=4
    )
    page = Page(path)
    assert len(page.all("section")) == 2
    assert len(page.all("li")) == 8
    assert "2 of 5 queries" in page.text
    assert "up to 4 results" in page.text


def test_a_name_that_is_too_long_for_a_file(pictures, tmp_path):
    name = "identity " + "x" * 300
    page = Page(write_contact_sheet(tmp_path / "r.html", pictures[:1], [name], np.array([[0]]), np.zeros((1, 1))))
    assert name in page.text


def test_names_that_are_not_utf8(tmp_path):
    name = str(tmp_path / "\udcff %41.jpg")
    Image.new("RGB", (30, 60)).save(name)
    path = write_contact_sheet(tmp_path / "r.html", [name], [name], np.array([[0]]), np.zeros((1, 1)))
    assert [unquote(a["href"], errors="surrogateescape") for a in Page(path).all("a")] == ["\udcff %41.jpg"] * 2
