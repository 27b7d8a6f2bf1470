"""Charts: where lines, ticks and limits lie, and what they say to readers who cannot see them."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from evaluation.charts import Axes, Line, chart

LEFT, RIGHT, TOP, FLOOR = 52, 480 - 22, 24, 300 - 44


def parse(lines, axes, summary=""):
    return ElementTree.fromstring(chart(lines, axes, summary))


def paths(parsed, kind):
    return [path.get("d") for path in parsed.iter("path") if path.get("class") == kind]


def texts(parsed):
    return {text.text: (float(text.get("x")), float(text.get("y"))) for text in parsed.iter("text")}


def test_points_fill_the_frame():
    axes = Axes("x", "y", (1, 5), (0.5, 1))
    parsed = parse([Line("", [1, 3, 5], [0.5, 0.75, 1]), Line("", [1, 5], [1, 0.5])], axes)
    middle = ((LEFT + RIGHT) / 2, (TOP + FLOOR) / 2)
    assert paths(parsed, "first") == [f"M{LEFT}.0 {FLOOR}.0L{middle[0]:.1f} {middle[1]:.1f}L{RIGHT}.0 {TOP}.0"]
    assert paths(parsed, "second") == [f"M{LEFT}.0 {TOP}.0L{RIGHT}.0 {FLOOR}.0"]


def test_an_area_ends_on_the_axis():
    parsed = parse([Line("", [0, 1], [1, 0.5], is_filled=True)], Axes("x", "y", (0, 1), (0, 1)))
    assert paths(parsed, "first area")[0].endswith(f"L{RIGHT}.0 {FLOOR}.0L{LEFT}.0 {FLOOR}.0Z")
    assert len(paths(parsed, "first")) == 1
    assert not paths(parse([Line("", [0, 1], [1, 0.5])], Axes("x", "y", (0, 1), (0, 1))), "first area")


@pytest.mark.parametrize(
    ("low", "high", "percent", "expected"),
    [
        (0, 1, True, ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (1, 50, False, ["10", "20", "30", "40", "50"]),
        (0.9, 1, True, ["90%", "92%", "94%", "96%", "98%", "100%"]),
        (0, 0.0121, True, ["0%", "0.25%", "0.5%", "0.75%", "1%"]),
        (3.1, 3.1, False, []),
    ],
)
def test_ticks_are_round_numbers(low, high, percent, expected):
    parsed = parse([], Axes("x", "y", (low, high), (7, 7), percent=(percent, False)))
    found = {text: place for text, place in texts(parsed).items() if place[1] == FLOOR + 18}
    assert list(found) == expected
    for text, (x, _) in found.items():
        value = float(text.strip("%")) / (100 if percent else 1)
        assert x == pytest.approx(LEFT + (value - low) / (high - low) * (RIGHT - LEFT), abs=0.06)


def test_names_of_limits_do_not_overlap_nor_leave_the_frame():
    axes = Axes("x", "y", (0, 1), (0, 1), limits=[(0.1, "one"), (0.1, "two"), (0.9, "three")])
    parsed = parse([Line("same", [0, 1], [0, 1]), Line("other", [0, 1], [1, 0])], axes)
    found = texts(parsed)
    heights = [found[name][1] for name in ("one", "two", "three")]
    assert min(b - a for a, b in pairwise(heights)) >= 12
    anchors = {text.text: text.get("text-anchor") for text in parsed.iter("text")}
    assert (anchors["one"], anchors["three"]) == ("start", "end")
    place = LEFT + 0.1 * (RIGHT - LEFT)
    assert found["one"][0] == pytest.approx(place + 4, abs=0.06) and f"M{place:.1f} " in paths(parsed, "limit")[0]
    assert found["same"][0] < found["other"][0] - 60 and found["same"][1] == found["other"][1] == 12
    assert found["other"][0] == RIGHT and found["one"][1] > TOP
    assert found["x"] == ((LEFT + RIGHT) / 2, 294) and found["y"] == (4, 12)


def test_texts_are_escaped_and_read_aloud():
    text = chart([Line("<a>", [0, 1], [0, 1])], Axes("<x>", "<y>", (0, 1), (0, 1), limits=[(0.5, "<l>")]), '"rises" <')
    assert not re.search(r"<[axyl]>", text)
    parsed = ElementTree.fromstring(text)
    assert (parsed.get("role"), parsed.get("aria-label")) == ("img", '"rises" <')
    assert {"<a>", "<x>", "<y>", "<l>"} <= set(texts(parsed))
