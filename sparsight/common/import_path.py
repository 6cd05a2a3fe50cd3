"""Where modules are looked for; set before anything is imported that could be taken from the current folder."""

from __future__ import annotations

import os
from collections.abc import Sequence


def current_folder_last(path: Sequence[str], folder: str) -> list[str]:
    """An import path with ``folder`` at its end and nowhere else.

    A user's own ``my_mixers.py`` is then found, and a user's own ``callbacks/`` does not hide ours.
    """
    kept = [entry for entry in path if entry and os.path.realpath(entry) != os.path.realpath(folder)]
    return [*kept, folder]
