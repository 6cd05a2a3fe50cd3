"""Settings behind a cache of computed samples: the key that they make, and in what two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsight.common.hashes import XXH3
from sparsight.common.plain import flatten

MANIFEST = "manifest.json"  # of a cache: the settings
_SHOWN_DIFFERENCES = 8


def cache_key(settings: Mapping[str, Any]) -> str:
    """Name of the cache of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def has_former(root: Path) -> bool:
    """Whether a folder of caches, or one that is a cache itself, has some of before hashes told their kind."""
    found = [read_settings(path) for path in (root / MANIFEST, *root.glob(f"*/{MANIFEST}"))]
    return any(settings is not None and XXH3 not in json.dumps(settings) for settings in found)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def read_settings(path: Path) -> dict[str, Any] | None:
    """Settings of a manifest, or ``None`` if the file is none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    settings = manifest.get("settings") if isinstance(manifest, dict) else None
    return settings if isinstance(settings, dict) else None


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings that differ, a line each."""
    there, here = flatten(theirs), flatten(ours)
    lines = [
        f"  {key}: {str(there.get(key))[:60]} there, {str(here.get(key))[:60]} asked for"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    more = len(lines) - _SHOWN_DIFFERENCES
    return "\n".join(lines[:_SHOWN_DIFFERENCES] + ([f"  and {more} more"] if more > 0 else []))
