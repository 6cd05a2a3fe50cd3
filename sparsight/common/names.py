"""Dotted names: what they mean, and how shortly they can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any


def named(path: str) -> Any:
    """What a name such as ``callbacks.ImageWriter`` means, the module imported; none if there is nothing of that name.

    Args:
        path: Dotted name of a module's attribute.
    """
    module, _, name = path.rpartition(".")
    try:
        return resolve_name(f"{module}:{name}")
    except (ImportError, AttributeError, ValueError):
        return None


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """Paths of modules without the words that stand in all of them, but for the first word and numbers.

    ``down_blocks.0.attentions.1.transformer_blocks.0.attn1`` is ``down_blocks.0.1.0`` where all others have these words
    too. Where two would become one, all stay as they are.
    """
    everywhere = set.intersection(*(set(path.split(".")[1:]) for path in paths)) if paths else set()
    left_out = {word for word in everywhere if not word.isdigit()}
    found = {}
    for path in paths:
        first, *rest = path.split(".")
        found[path] = ".".join([first, *(word for word in rest if word not in left_out)])
    return found if len(set(found.values())) == len(found) else {path: path for path in paths}
