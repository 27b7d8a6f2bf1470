"""Every config key is read by some code, or is on the list of those that are accepted and unused."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import cfg, defaults
from config.flatten import flatten_config
from config.validate import check_config
from tests.support import ROOT

KEYS = flatten_config(cfg)
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
NOT_CODE = {"tests", "config", "build", "dist", "node_modules"}


def sources() -> Iterator[Path]:
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in NOT_CODE and not any(part.startswith(".") for part in parts):
            yield path


def keys_read(source: str) -> set[str]:
    """Keys that a program reads: as ``x.SOLVER.BASE_LR``, ``x["SOLVER"]["BASE_LR"]``, ``solver.BASE_LR`` after
    ``solver = x.SOLVER``, or as the whole string "SOLVER.BASE_LR". Assigning to a key is not reading it.
    """
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = last_name(node.value)
            if name in SECTIONS:
                aliases[node.targets[0].id] = name
    read: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in KEYS:
            read.add(str(node.value))
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Load):
            owner = last_name(node.value)
            if isinstance(node.value, ast.Name):
                owner = aliases.get(node.value.id, owner)
            read |= {key for key in (f"{owner}.{last_name(node)}", last_name(node)) if key in KEYS}
    return read


def last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return ""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = self.hparams.SOLVER.BASE_LR", {"SOLVER.BASE_LR"}),
        ("x = cfg['TEST']['IMS_PER_BATCH']", {"TEST.IMS_PER_BATCH"}),
        ("solver = cfg.SOLVER\nf(solver.GAMMA)", {"SOLVER.GAMMA"}),
        ("f('TEST.FEAT_NORM')", {"TEST.FEAT_NORM"}),
        ("f(cfg.GPU_IDS)", {"GPU_IDS"}),
        ("cfg.OUTPUT_DIR = cfg.LOG_DIR", {"LOG_DIR"}),
        ("cfg.SOLVER.BASE_LR = 1", set()),
        ("f('SOLVER.GAMMA is wrong')", set()),
        ("f(GAMMA, other.GAMMA, solver.GAMMA)", set()),
    ],
)
def test_the_search_itself(source: str, expected: set[str]) -> None:
    assert keys_read(source) == expected


@pytest.mark.parametrize("key", sorted(set(KEYS) - set(defaults.UNUSED_KEYS) - set(defaults.CHECKED_ONLY_KEYS)))
def test_every_other_key_is_read_somewhere(key: str, read_anywhere: set[str]) -> None:
    assert key in read_anywhere


@pytest.mark.parametrize("key", defaults.UNUSED_KEYS)
def test_unused_keys_are_unused(key: str, read_anywhere: set[str]) -> None:
    assert key in KEYS
    assert key not in read_anywhere


@pytest.mark.parametrize("key", defaults.CHECKED_ONLY_KEYS)
def test_checked_only_keys_are_checked(key: str) -> None:
    config = cfg.clone()
    section, _, name = key.partition(".")
    config[section][name] = not KEYS[key]
    with pytest.raises(ValueError, match=key):
        check_config(config)


@pytest.fixture(scope="module")
def read_anywhere() -> set[str]:
    return set().union(*(keys_read(path.read_text(encoding="utf-8")) for path in sources()))
