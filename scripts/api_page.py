"""Write docs/API.md, the public classes and functions with their signatures: ``python -m scripts.api_page``."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "API.md"
# In the order of docs/ARCHITECTURE.md, from the top downwards.
ROOMS = (
    "engine", "inference", "modelling", "evaluation", "datasets", "losses", "solver", "callbacks", "checkpoints",
    "config", "utils",
)  # fmt: skip
# The original's files over the rooms of today (see docs/MIGRATION.md), and command lines rather than modules to import.
DOORS = {
    "utils.misc", "utils.eval_reid", "utils.reid_metric", "utils.visrank", "utils.evaluate",
    "callbacks.chechpointer_callback", "datasets.hand_filled", "datasets.samplers.distributed_pids_sampler",
}  # fmt: skip
COMMANDS = {"inference.create_embeddings", "inference.get_similar", "inference.export", "datasets.validate"}
HEAD = """# API

Every public class and function of the modules that programs import, with its signature and the first sentences of its
docstring, which also tells shapes and errors. `python -m scripts.api_page` writes this page.
"""

Definition = ast.ClassDef | ast.FunctionDef


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of each public module, room by room."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name not in DOORS | COMMANDS and not parts[-1].startswith("__main__"):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def definitions(node: ast.Module | ast.ClassDef) -> list[Definition]:
    """Public classes and functions, in the order of the file; of a function with overloads the last."""
    found = [part for part in node.body if isinstance(part, ast.ClassDef | ast.FunctionDef)]
    return list({part.name: part for part in found if not part.name.startswith("_")}.values())


def signature(node: Definition) -> str:
    """``name(arguments) -> result``; of a class the arguments of its constructor, or the fields that make it."""
    if isinstance(node, ast.FunctionDef):
        return f"{node.name}({arguments(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    made_by = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if made_by is not None:
        return f"{node.name}({arguments(made_by.args)})"
    marks = " ".join(ast.unparse(part) for part in (*node.bases, *node.decorator_list))
    fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
    return f"{node.name}({', '.join(fields)})" if "NamedTuple" in marks or "dataclass" in marks else node.name


def arguments(given: ast.arguments) -> str:
    """Without ``self`` and ``cls``, and with spaces around the = of defaults."""
    return re.sub(r"(?<=\S)=(?=\S)", " = ", re.sub(r"^(self|cls)(, |$)", "", ast.unparse(given)))


def summary(node: Definition | ast.Module) -> str:
    """The first paragraph of a docstring on one line, in Markdown rather than reStructuredText."""
    words = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    for role in (":class:", ":func:", ":meth:", ":mod:", "~"):
        words = words.replace(role + "`", "`").replace("`" + role, "`")
    return words.replace("``", "`")


def lines_of(node: ast.Module | ast.ClassDef, indent: str = "") -> Iterator[str]:
    """One line for each public definition; below a class its methods that have a docstring."""
    for part in definitions(node):
        if not indent or ast.get_docstring(part):
            yield f"{indent}- `{signature(part)}`: {summary(part)}".removesuffix(": ")
        if isinstance(part, ast.ClassDef):
            yield from lines_of(part, indent + "  ")


def render() -> str:
    """The whole page."""
    sections = ((name, tree, "\n".join(lines_of(tree))) for name, tree in modules())
    return "\n".join([HEAD, *(f"## {name}\n\n{summary(tree)}\n\n{lines}\n" for name, tree, lines in sections if lines)])


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE}\n")
