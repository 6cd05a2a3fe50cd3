"""A list that is given again takes the place of the one before, whatever stood in that.

jsonargparse 4 compares two lists of one length entry by entry, and where two entries name one class, options that the
later leaves out come from the earlier: a plan, a list of callbacks or of sources would depend on how long the one was
that it replaces.
"""

from __future__ import annotations

from typing import Any

from jsonargparse import _typehints

_adapted = _typehints.adapt_typehints


def replace_lists() -> None:
    """From now on parsers forget a list when another is given; what is appended, or set in its last entry, is added."""
    _typehints.adapt_typehints = _adapt


def _adapt(val: Any, typehint: Any, *args: Any, **options: Any) -> Any:
    if isinstance(val, list) and not options.get("append"):
        options["prev_val"] = None
    return _adapted(val, typehint, *args, **options)
