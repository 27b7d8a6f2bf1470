"""The pages: links and anchors, files and configuration keys that they name, and which pages there are."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from config import cfg
from config.flatten import flatten_config
from tests.support import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
WITHOUT_CONTENTS = {"README.md", "CHANGELOG.md", "API.md"}
SUBJECTS = (
    "ARCHITECTURE",
    "DATA",
    "TRAINING",
    "EVALUATION",
    "INFERENCE",
    "BACKBONES",
    "BENCHMARKS",
    "SCALING",
    "FAULTS",
)

FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
LINK = re.compile(r'\]\(([^()\s]+)(?: +"[^"]*")?\)')
# A section of the configuration, a dot, and a name in capitals; not a file such as FAULTS.md.
KEY = re.compile(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|LOSSES|TEST|TRAINER|LOGGING)\.[A-Z][A-Z0-9_]*\b")
FILE = re.compile(r"[\w-]+/[\w./-]+\.(?:py|yml|sh)")


def prose(text):
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def slug(heading):
    """The anchor that GitHub gives a heading: its text in lower case, without punctuation, spaces as hyphens."""
    text = LINK.sub("]", heading).replace("[", "").replace("]", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def anchors(page):
    names = [slug(heading) for heading in HEADING.findall(prose(page.read_text(encoding="utf-8")))]
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return frozenset(f"{name}-{count}" if count else name for name, count in zip(names, counts, strict=True))


def broken_links(page, text):
    """The relative links of a text that stands in ``page`` and that lead nowhere."""
    broken = []
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and (path.suffix != ".md" or anchor not in anchors(path))):
            broken.append(target)
    return broken


def missing_files(text):
    """The files of code that a text names with their folder, in prose or in commands, and that do not exist."""
    names = {name for name in re.split(r"[\s`()\[\],;=]+", text) if FILE.fullmatch(name)}
    return sorted(name for name in names if not (ROOT / name).is_file())


def unknown_keys(text):
    return sorted(set(KEY.findall(text)) - set(flatten_config(cfg)))


def test_every_page_is_there():
    at_the_root = {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    expected = at_the_root | {ROOT / "docs" / f"{subject}.md" for subject in SUBJECTS}
    assert {page for page in expected if not page.is_file()} == set()


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(readme)}
    assert [page.name for page in PAGES if page.name != "README.md" and page not in linked] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_keys(page):
    text = page.read_text(encoding="utf-8")
    assert broken_links(page, text) == []
    assert missing_files(text) == []
    assert unknown_keys(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_of_contents_names_every_section(page):
    text = prose(page.read_text(encoding="utf-8"))
    listed = re.findall(r"^- \[.+\]\(#(.+)\)$", text, re.MULTILINE)
    sections = [slug(heading) for heading in re.findall(r"^## +(.+)$", text, re.MULTILINE)]
    assert listed == ([] if page.name in WITHOUT_CONTENTS else sections)


def test_the_image_of_the_readme_is_small():
    images = sorted((ROOT / "docs" / "images").iterdir())
    assert images
    assert [path.name for path in images if path.stat().st_size > 60_000] == []


def test_mistakes_are_found():
    """What the tests above rest on, with mistakes made on purpose."""
    readme = ROOT / "README.md"
    good = "[a](docs/FAULTS.md#sigterm) [b](#train) [c](https://example.org/x.md#y) `config/load.py` `SOLVER.MARGIN`"
    assert (broken_links(readme, good), missing_files(good), unknown_keys(good)) == ([], [], [])
    bad = "[a](docs/NONE.md) [b](docs/FAULTS.md#none) [c](#none) `config/none.py` `SOLVER.NONE` [d](LICENSE#none)"
    bad += ' [e](x.md "E")'
    assert broken_links(readme, bad) == ["docs/NONE.md", "docs/FAULTS.md#none", "#none", "LICENSE#none", "x.md"]
    assert missing_files(f"{bad} python --config_file=configs/none.yml") == ["config/none.py", "configs/none.yml"]
    assert unknown_keys(bad) == ["SOLVER.NONE"]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("GATHER_NEGATIVES", "gather_negatives"),
        ("Several machines: torchrun", "several-machines-torchrun"),
        ("ONNX without this code", "onnx-without-this-code"),
        ("2.0.0 (unreleased)", "200-unreleased"),
        ("What `--roc` prints & why", "what---roc-prints--why"),
        ("Read [the page](docs/DATA.md)", "read-the-page"),
    ],
)
def test_anchors_follow_the_rule_of_github(heading, anchor):
    assert slug(heading) == anchor


def test_headings_of_one_name_are_numbered(tmp_path):
    page = Path(tmp_path) / "page.md"
    page.write_text("# A\n\n## B\n\n```sh\n# not a heading\n```\n\n## B\n", encoding="utf-8")
    assert anchors(page) == {"a", "b", "b-1"}
