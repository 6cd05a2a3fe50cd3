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


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths of sites in a few letters, or as they are where those would not tell them apart."""
    last = {path.rpartition(".")[2] for path in paths}

    def short(path: str) -> str:
        parts = path.split(".")
        word = parts[0].removesuffix("s").removesuffix("_block")
        numbers = ".".join(part for part in parts[1:] if part.isdigit())
        return " ".join(filter(None, [word, numbers, parts[-1] if len(last) > 1 else ""]))

    names = [short(path) for path in paths]
    return names if len(set(names)) == len(paths) else list(paths)
