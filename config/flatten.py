"""Turns a configuration tree into a flat dictionary."""

from typing import Any

from yacs.config import CfgNode


def flatten_config(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Map every key of the tree, by its dotted name, to its value, in the order of the tree.

    Args:
        node: a whole tree, or one of its sections.
        prefix: text before each name, such as "SOLVER." for a section.

    Returns:
        {"MODEL.NAME": "resnet50", ...}; an empty tree gives an empty dictionary.
    """
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(flatten_config(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
