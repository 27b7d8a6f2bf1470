"""The list of configuration keys that ``--help`` prints, built from the comments in defaults.py."""

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

_ASSIGNMENT = re.compile(r"_C\.(?P<key>[A-Z0-9_.]+) = (?P<default>.+)")


@dataclass
class Key:
    """One key: its dotted name, its default as written in Python, and its comment on one line."""

    name: str
    default: str
    comment: str


@dataclass
class Section:
    """A section ("" for the keys outside any), its comment, and its keys in order."""

    name: str
    comment: str
    keys: list[Key] = field(default_factory=list)


def read_reference() -> list[Section]:
    """Read the sections of defaults.py with their keys, in file order; the keys outside any section come last."""
    sections: dict[str, Section] = {}
    outside = Section("", "General.")
    comment: list[str] = []
    for line in (Path(__file__).parent / "defaults.py").read_text(encoding="utf-8").splitlines():
        match = _ASSIGNMENT.fullmatch(line)
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        if match:
            name, default, text = match["key"], match["default"], " ".join(comment)
            if default == "CfgNode()":
                sections[name] = Section(name, text)
            else:
                section = sections.get(name.rpartition(".")[0], outside)
                section.keys.append(Key(name, default, text))
        comment = []
    return [*sections.values(), outside]


def format_reference(width: int = 100) -> str:
    """Format the reference as text: each key with its default, and its comment indented below."""
    lines = ["config keys, with their defaults:"]
    for section in read_reference():
        lines += ["", f"{section.name}: {section.comment}" if section.name else section.comment]
        for key in section.keys:
            lines.append(f"  {key.name} = {key.default}")
            lines += textwrap.wrap(key.comment, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"
