"""Names that are nearly called so as what was given."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(name: str, known: Sequence[str], *, cutoff: float = 0.6) -> str:
    """An addition to a message that names those of ``known`` that are nearly called so; empty if there are none."""
    return suggestion(closest(name, known, cutoff=cutoff))


def closest(name: str, known: Sequence[str], *, cutoff: float = 0.6) -> list[str]:
    """The two of ``known`` that are most nearly called so; letter case does not count."""
    lower: dict[str, str] = {}
    for each in known:
        lower.setdefault(each.lower(), each)
    return [lower[each] for each in get_close_matches(name.lower(), lower, n=2, cutoff=cutoff)]


def suggestion(names: Sequence[str]) -> str:
    """An addition to a message that names what may have been meant; empty if there is nothing."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def beside(path: Path) -> list[str]:
    """Paths of what stands beside one that is not there and is nearly called so; none where that cannot be read."""
    try:
        names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        return []
    return [str(path.with_name(name)) for name in closest(path.name, names)]
