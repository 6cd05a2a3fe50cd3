"""Hashes of weights in files, remembered for as long as the files stay what they were.

A large base takes tens of seconds to read and hash, at every start. What is remembered is trusted only while paths,
sizes, numbers on the disk and times of the last changes are what they were: of the content, and of anything about a
file, which programs cannot set back.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsight.common.disk.files import write_text
from sparsight.common.disk.stored_state import StoredState
from sparsight.common.hashes import XXH3, float32_hash, kind_of

FOLDER = "SPARSIGHT_CACHE"  # environment variable
WAY = "tensors of safetensors files, floats as float32"  # goes with how StoredState reads them
SETTLED = 2.0  # seconds: a file may change twice in one tick of a disk's clock, and keep its time


def cache_folder() -> Path:
    """What outlives runs: ``SPARSIGHT_CACHE``, or ``sparsight`` in the user's folder of caches."""
    given = os.environ.get(FOLDER)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "sparsight"


def remembered_hash(state: StoredState) -> str:
    """``state_hash`` of weights in files; they are read if they are new, or have changed since they were last read."""
    told = {"kind": XXH3, "way": WAY, "files": _facts(state.files)}
    name = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    place = cache_folder() / "hashes" / f"{name}.json"
    known = _read(place, told)
    if known is not None:
        return known
    began = time.time()
    found = float32_hash(state, state.read)
    newest = max(time_ns for fact in told["files"] for time_ns in fact[2:4]) / 1e9
    if told["files"] == _facts(state.files) and newest < began - SETTLED:
        try:
            write_text(place, json.dumps(told | {"hash": found}))
        except OSError:  # no place to remember it in
            return found
    return found


def _facts(files: Sequence[Path]) -> list[list[Any]]:
    """What tells that files are the same, as JSON holds it: path, size, times of changes, number on the disk."""
    facts = ((path.resolve(), path.stat()) for path in files)
    return [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in facts]


def _read(place: Path, told: dict[str, Any]) -> str | None:
    """What is remembered of these files; nothing if that is damaged, or of others."""
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or any(kept.get(key) != value for key, value in told.items()):
        return None
    found = kept.get("hash")
    return found if isinstance(found, str) and kind_of(found) == XXH3 else None
