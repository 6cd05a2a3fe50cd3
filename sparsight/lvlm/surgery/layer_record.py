"""Which decoder layers a run tunes, and which have left it: kept beside the run, for its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsight.common.disk.files import write_text

LAYERS = "layers.json"  # in the log folder


def write_layers(folder: Path, *, depth: int, tuned: Sequence[int], removals: Sequence[Mapping[str, Any]]) -> None:
    """Write ``LAYERS``.

    Args:
        folder: The run's log folder.
        depth: How many layers the base has.
        tuned: Those that any stage tunes.
        removals: Steps at which layers left, each with its layers and what they were chosen by, if that was measured.
    """
    left = [
        {"step": each["step"], "layers": each["layers"], "score": (each.get("measured") or {}).get("score")}
        for each in removals
    ]
    write_text(folder / LAYERS, json.dumps({"depth": depth, "tuned": list(tuned), "removals": left}, indent=1))
