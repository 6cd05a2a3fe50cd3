"""Plain data: what YAML, JSON and checkpoints hold without code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Nested(Protocol):
    """A namespace of jsonargparse."""

    def as_dict(self) -> dict[str, Any]:
        """It, and what lies in it, as dictionaries."""
        ...


def is_plain(value: Any) -> bool:
    """Whether a value is made of nothing but numbers, text, lists and mappings."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def setting(config: Any, name: str, default: Any = None) -> Any:
    """What a configuration of another library says.

    Args:
        config: Of transformers or diffusers, or an object made by one.
        name: Of the option.
        default: What counts where it is not declared.
    """
    return getattr(config, name, default)  # which options a model has is decided by its class, and by a version of that


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, namespaces and lists as ``{"a.b.0": value}``."""
    if isinstance(tree, Nested):
        tree = tree.as_dict()
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
