"""What a dotted name means."""

from __future__ import annotations

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
