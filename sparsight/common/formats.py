"""Numbers that say how a file is laid out, so that a later version can still read it and an earlier one refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "format"


def check_format(content: Any, newest: int, what: str) -> int:
    """The format of what was read from a file, if this version knows it; all since 1 are known.

    Args:
        content: What the file holds.
        newest: The format that this version writes.
        what: The file, or the part of it, for the message.

    Raises:
        ValueError: It is of a later format, or of none.
    """
    found = content.get(KEY) if isinstance(content, Mapping) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{what} is damaged: {KEY} is {found!r}, not a number from 1 to {newest}")
    if found > newest:
        raise ValueError(
            f"{what} has {KEY} {found}, and this version of Sparsight reads up to {newest}: it was written by a later "
            "version, so install that one (its number stands in the file, or in the card beside it)"
        )
    return found
