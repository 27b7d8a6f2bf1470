"""Pages as a reader meets them: opened from the disk in a browser, filtered, turned over, and used without a mouse."""

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import evaluate
from evaluation.page_data import Shown, worst_first
from evaluation.pages import write_page
from evaluation.ranked_images import rank_for_display
from evaluation.retrieval import RetrievalSet
from tests.browser import look, needs_browser
from utils.labels import Names

pytestmark = needs_browser

EVIL = '</script><img src=x onerror="document.title = `run`">'
QUERIES = 10_000
LISTED = """
const listed = () => ({
  names: [...document.querySelectorAll("#rankings h3")].map((title) => title.textContent),
  count: document.getElementById("count").textContent,
  turn: [...document.querySelectorAll("button.previous, button.next")].map((button) => !button.disabled),
});
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A page of 10,000 queries, and the evaluation that it shows."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, 300, QUERIES + 600), rng.integers(0, 4, QUERIES + 600)
    feats = (rng.normal(size=(300, 8))[pids] + 0.8 * rng.normal(size=(len(pids), 8))).astype(np.float32)
    paths = [f"{i}.jpg" for i in range(len(pids))]
    rows = slice(0, QUERIES), slice(QUERIES, None)
    arrays = [values[part] for values in (feats, pids, camids, paths) for part in rows]
    retrieval = RetrievalSet(*arrays)
    result = evaluate(retrieval)
    rankings = rank_for_display(retrieval, topk=3, queries=worst_first(result)[:30])
    path, _ = write_page(folder / "page.html", result, retrieval, None, Shown(rankings))
    return path, result, retrieval


def test_ten_thousand_queries_are_filtered_by_the_address(many):
    path, result, retrieval = many
    ap = dict(zip(result.query_index.tolist(), result.average_precision.round(6).tolist(), strict=True))
    order = worst_first(result)
    views = {
        "#page=3": lambda q: True,
        "#page=2&camera=3&ap=0-0.5": lambda q: retrieval.q_camids[q] == 3 and ap.get(q, 2) <= 0.5,
        "#identity=7": lambda q: retrieval.q_pids[q] == 7,
        "#page=999&ap=0.25-0.75": lambda q: 0.25 <= ap.get(q, 2) <= 0.75,
        "#camera=9": lambda q: False,
        "#page=x&ap=no&camera=": lambda q: True,
    }
    script = f"{LISTED} const views = []; for (const view of {list(views)}) {{ await go(view); views.push(listed()); }}"
    seen = look(path, script + "return { views };", "#page=2")
    assert seen["console"] == [] and seen["requests"] == []
    for (view, keeps), found in zip(views.items(), seen["views"], strict=True):
        kept = [query for query in order if keeps(query)]
        pages = max(1, -(-len(kept) // 20))
        page = min(999 if "999" in view else int(view[6]) if view[6:7].isdigit() else 1, pages)
        assert found["names"] == [f"{query}.jpg" for query in kept[20 * (page - 1) : 20 * page]], view
        assert found["count"] == f"{len(kept)} of {QUERIES} queries, page {page} of {pages}"
        assert found["turn"] == [page > 1, page < pages] * 2


@pytest.fixture
def small(tmp_path):
    """A page of three queries, whose names would run if they were taken as HTML."""
    files = [tmp_path / f"{name}.png" for name in ("a", "<b>", "c", "d", "e")]
    for file in files:
        Image.new("RGB", (8, 16), (200, 40, 40)).save(file)
    feats = np.array([[0, 0], [5, 0], [0, 5], [0, 1], [5, 1]], dtype=np.float32)
    paths = {"q_paths": files[:3], "g_paths": [*files[3:4], Path("missing.png")]}
    names = Names({7: EVIL, 8: "Bo & Co", 9: "nobody"}, {0: "door", 1: EVIL})
    retrieval = RetrievalSet(feats[:3], feats[3:], [7, 8, 9], [7, 8], [0, 1, 0], [1, 0], **paths, names=names)
    result, rankings = evaluate(retrieval), rank_for_display(retrieval)
    shown = Shown(rankings, {0: tmp_path / "strips/a b.png"}, {0: files[4]})
    return write_page(tmp_path / "page.html", result, retrieval, None, shown)[0]


def test_a_page_is_used_with_mouse_and_keyboard(small):
    script = f"""{LISTED}
    const drawn = [...document.querySelectorAll("#rankings img")].every((image) => image.naturalWidth);
    const links = [...document.querySelectorAll("dd a")].map(String);
    const start = {{ ...listed(), title: document.title, drawn, links }};
    const results = [...document.querySelectorAll("#rankings article li")].map((item) => item.innerText.trim());
    const labels = [...document.querySelectorAll("#rankings article img")].map((image) => image.alt);
    const charts = [...document.querySelectorAll("svg.chart")].map((chart) => chart.getAttribute("aria-label"));
    const fields = document.getElementById("filter").elements;
    const change = (name, value) => after(() => {{
      fields[name].value = value;
      fields[name].dispatchEvent(new Event("change", {{ bubbles: true }}));
    }});
    await change("camera", "door");
    const camera = {{ ...listed(), hash: location.hash }};
    await change("high", "12.5");
    const hash = location.hash;
    await after(() => document.querySelector("#filter [type=reset]").click());
    const back = listed();
    const map = document.getElementById("map");
    const press = (key) => map.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
    press("ArrowRight"); press("ArrowRight");
    const point = document.getElementById("point").innerText;
    const same = map.querySelectorAll(".same").length;
    await after(() => press("Enter"));
    const identity = decodeURIComponent(location.hash);
    press("ArrowLeft"); press("ArrowLeft");
    const shapes = [...map.querySelectorAll("circle:not(#ring), path")];
    const target = shapes[3].getBoundingClientRect();
    map.dispatchEvent(new PointerEvent("pointermove", {{
      clientX: target.x + target.width / 2, clientY: target.y + target.height / 2, bubbles: true,
    }}));
    const hovered = document.getElementById("point").innerText;
    await after(() => map.dispatchEvent(new MouseEvent("click")));
    const clicked = decodeURIComponent(location.hash).replaceAll("+", " ");
    const used = {{ camera, hash, back, point, same, identity, hovered, clicked, shapes: shapes.length }};
    return {{ start, results, labels, charts, ...used }};
    """
    seen = look(small, script)
    assert seen["console"] == [] and seen["requests"] == []
    start = seen["start"]
    assert start["names"] == ["a.png", "<b>.png", "c.png"] and start["drawn"]  # equal AP, then one without a match
    assert start["title"] == "Evaluation: single images" and "Results" not in start["count"]
    assert any(link.endswith("/strips/a%20b.png") for link in start["links"])
    assert any(link.endswith(f"#page=1&identity={quote('Bo & Co').replace('%20', '+')}") for link in start["links"])
    assert seen["results"][:3] == ["query", "heat map", f"1 ✓ 1\n{EVIL} · cam {EVIL}"]
    assert seen["results"][3] == "missing.png\n2 ✗ 26\nBo & Co · cam door"
    assert seen["labels"][:3] == ["the query", "heat map of a.png", f"rank 1, right, identity {EVIL}, camera {EVIL}"]
    assert [label.split(":")[0] for label in seen["charts"]][:2] == ["Cumulative matching", "Precision"]
    assert seen["camera"]["names"] == ["a.png", "c.png"] and seen["camera"]["hash"] == "#page=1&camera=door"
    assert seen["hash"] == "#page=1&camera=door&ap=0-0.125"
    assert seen["back"]["names"] == start["names"]
    assert seen["shapes"] == 5 and seen["same"] == 2
    assert EVIL in seen["point"] and seen["identity"] == f"#page=1&identity={EVIL.replace(' ', '+')}"
    assert "Bo & Co" in seen["hovered"] and seen["clicked"] == "#page=1&identity=Bo & Co"
