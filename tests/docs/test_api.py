"""docs/API.md is what the code says today."""

import ast

import pytest

from scripts import api_page
from tests.test_imports import DOORS, LEVEL_OF


def test_the_page_is_up_to_date():
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.render(), "python -m scripts.api_page writes it anew"


@pytest.mark.parametrize(
    "entry",
    [
        "## losses.triplet_loss",
        "- `TripletLoss(margin: float | None = None, dist_func: str | DistanceFunc = 'euclidean')`: Batch-hard",
        "- `search_gallery(query: Any, gallery: Any, *, metric: str = 'euclidean', topk: int = 100, ",
        "- `RetrievalSet(query: Any, gallery: Any, q_pids: Any, ",
        "  - `from_checkpoint(path: str | os.PathLike[str], device: ",
        "- `init_dataset(name: str, cfg: CfgNode | None = None, num_workers: int | None = None, **kwargs: Any)",
    ],
)
def test_what_programs_import_is_there(entry):
    assert any(line.startswith(entry) for line in api_page.render().splitlines())


def test_private_names_doors_and_commands_are_left_out():
    lines = api_page.render().splitlines()
    assert not [line for line in lines if line.lstrip().startswith("- `_")]
    headings = {line.removeprefix("## ") for line in lines if line.startswith("## ")}
    assert not headings & (DOORS | {"inference.create_embeddings", "inference.get_similar", "inference.export"})
    assert not headings & {"datasets.validate", "evaluation.__main__"}
    without_a_page = {"benchmarks", "centroids_reid", "examples", "scripts", "train_ctl_model", "train_base_model"}
    assert {heading.split(".")[0] for heading in headings} == set(LEVEL_OF) - without_a_page


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("def f(a, b: int=1, *d: str, e, g: int=3, **h: int) -> int:\n 'Do. ``x``'",
         "- `f(a, b: int = 1, *d: str, e, g: int = 3, **h: int) -> int`: Do. `x`"),
        ("def f(*, a): ...", "- `f(*, a)`"),
        ("class C(Base):\n def __init__(self, a): ...", "- `C(a)`"),
        ("class C(NamedTuple):\n a: int\n b: str = ''", "- `C(a: int, b: str = '')`"),
        ("@dataclass(frozen=True)\nclass C:\n a: int", "- `C(a: int)`"),
        ("class C:\n a: int", "- `C`"),
        ("@overload\ndef f(a: int): ...\ndef f(a): ...", "- `f(a)`"),
    ],
)  # fmt: skip
def test_signatures(source, line):
    assert list(api_page.lines_of(ast.parse(source))) == [line]


def test_methods_stand_below_their_class_where_they_have_a_docstring():
    source = "class C:\n '''A.'''\n def b(self):\n  '''B, see :meth:`c`.'''\n def c(self): ..."
    assert list(api_page.lines_of(ast.parse(source))) == ["- `C`: A.", "  - `b()`: B, see `c`."]
