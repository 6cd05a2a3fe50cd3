"""Plain data: what YAML, JSON and checkpoints hold without code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_plain(value: Any) -> bool:
    """Whether a value is made of nothing but numbers, text, lists and mappings."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, namespaces and lists as ``{"a.b.0": value}``."""
    if hasattr(tree, "as_dict"):
        tree = tree.as_dict()
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
