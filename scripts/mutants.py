"""The changes that scripts/mutate.py makes to a line of code, and the tests that must notice."""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("tests/evaluation/test_metrics.py", "tests/utils/test_reid_metric.py")
# What is mutated -> the tests that must notice; the first entry that a path starts with counts.
TESTS: dict[str, tuple[str, ...]] = {
    "losses/": ("tests/losses",),
    "evaluation/__main__.py": ("tests/evaluation/test_command.py",),
    "evaluation/calibration.py": ("tests/evaluation/test_calibration.py",),
    "evaluation/open_set.py": ("tests/evaluation/test_open_set.py",),
    "evaluation/charts.py": ("tests/evaluation/test_charts.py",),
    "evaluation/curves.py": ("tests/evaluation/test_curves.py",),
    "evaluation/embedding_map.py": ("tests/evaluation/test_embedding_map.py",),
    "evaluation/pages.py": ("tests/evaluation/test_pages.py",),
    "evaluation/page_data.py": ("tests/evaluation/test_pages.py",),
    "evaluation/page_parts.py": ("tests/evaluation/test_page_parts.py",),
    "evaluation/ranked_images.py": ("tests/evaluation/test_ranked_images.py",),
    "evaluation/neighbours.py": ("tests/evaluation/test_neighbours.py",),
    "evaluation/rerank.py": ("tests/evaluation/test_rerank.py",),
    "evaluation/tables.py": ("tests/evaluation/test_tables.py", "tests/evaluation/test_command.py"),
    "evaluation/verification.py": ("tests/evaluation/test_verification.py", "tests/evaluation/test_command.py"),
    "evaluation/centroid_protocols.py": ("tests/evaluation/test_centroid_protocols.py", *METRICS),
    "evaluation/": ("tests/evaluation/test_ranking.py", *METRICS, "tests/evaluation/test_verification.py"),
    "datasets/samplers/": ("tests/datasets/test_sampler.py",),
    "datasets/draws.py": ("tests/datasets/test_sampler.py", "tests/datasets/test_loading.py"),
    "solver/": ("tests/solver",),
    "checkpoints/run_files.py": ("tests/checkpoints/test_run_files.py", "tests/engine/test_start.py"),
    "checkpoints/": ("tests/checkpoints", "tests/engine/test_start.py"),
    "inference/embedding/folding.py": ("tests/inference/embedding/test_folding.py",),
    "utils/distances.py": (
        "tests/utils/test_distances.py",
        "tests/losses",
        *METRICS,
        "tests/evaluation/test_ranking.py",
    ),
    "utils/centroids.py": (
        "tests/utils/test_centroids.py",
        "tests/losses",
        "tests/evaluation/test_centroid_protocols.py",
        *METRICS,
    ),
    "utils/mining.py": ("tests/utils/test_mining.py", "tests/losses"),
    "utils/labels.py": (
        "tests/utils/test_labels.py",
        *METRICS,
        "tests/losses",
        "tests/inference/galleries/test_gallery.py",
    ),
}
OTHER: dict[type, type] = {  # the operator that stands in for another
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.MatMult: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one file: the bytes from start to end become the text."""

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


def children(node: ast.AST) -> Iterator[ast.AST]:
    """What is mutated below a node: no annotation, decorator, assertion, import, or text put together."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            left_alone = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)
            if isinstance(child, ast.AST) and not isinstance(child, left_alone):
                yield child


def changed(node: ast.AST) -> Iterator[str]:
    """The texts that can stand in for a node."""
    text = ast.unparse(node)
    match node:
        case ast.Compare(left, operators, operands):
            for i, operator in enumerate(operators):
                new = [*operators[:i], OTHER[type(operator)](), *operators[i + 1 :]]
                yield f"({ast.unparse(ast.Compare(left, new, operands))})"
        case ast.BinOp(left, operator, right):
            yield f"({ast.unparse(ast.BinOp(left, OTHER[type(operator)](), right))})"
        case ast.BoolOp(operator, values):
            yield f"({ast.unparse(ast.BoolOp(OTHER[type(operator)](), values))})"
        case ast.UnaryOp(ast.Not(), operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(bool() | None as value):
            yield "True" if value is None else str(not value)
        case ast.Constant(int() | float() as value):
            yield from (f"({value + 1})", f"({value - 1})")
        case ast.Call(function, [first, second, *rest], keywords) if ast.dump(first) != ast.dump(second):
            symmetric = ast.unparse(function).split(".")[-1] in ("max", "min", "maximum", "minimum")
            if not symmetric and not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                yield ast.unparse(ast.Call(function, [second, first, *rest], keywords))
        case ast.Slice(lower, upper, step):
            if lower is not None:
                yield ast.unparse(ast.Slice(None, upper, step))
            if upper is not None:
                yield ast.unparse(ast.Slice(lower, None, step))
        case ast.Return(ast.AST() as value) if ast.unparse(value) != "None":
            yield "return None"
        case ast.AugAssign(target, operator, value):
            yield from (ast.unparse(ast.AugAssign(target, OTHER[type(operator)](), value)), "pass")
        case ast.Assign([ast.Attribute() | ast.Subscript()]) | ast.Raise() | ast.Continue() | ast.Break():
            yield "pass"
        case ast.Expr(value) if not isinstance(value, ast.Constant):
            yield "pass"
        case ast.For() | ast.While() | ast.If() if "return" in text:
            yield "return None"


def is_python(source: bytes) -> bool:
    """Whether the text can be compiled: a class, say, cannot return early."""
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Every change of a file, in its order."""
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    found, nodes = [], [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        nodes.extend(children(node))  # type: ignore[arg-type]
        for text in changed(node):
            start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
            end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
            mutant = Mutant(path, node.lineno, start, end, source[start:end].decode(), text)  # type: ignore[attr-defined]
            if is_python(mutant.apply(source)):
                found.append(mutant)
    return sorted(found, key=lambda mutant: (mutant.start, -mutant.end, mutant.after))


def tests_of(path: str) -> tuple[str, ...]:
    """The tests of a file."""
    return next(tests for prefix, tests in TESTS.items() if path.startswith(prefix))


def draw(number: int, seed: int, only: str) -> list[Mutant]:
    """Mutants of the files that the table names."""
    patterns = [f"{name}**/*.py" if name.endswith("/") else name for name in TESTS]
    files = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    found = [
        mutant
        for path in sorted(files)
        if path.startswith(only)
        for mutant in mutants(path, (ROOT / path).read_bytes())
    ]
    return random.Random(seed).sample(found, min(number, len(found)))
