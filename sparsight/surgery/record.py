"""What was changed in a denoiser, as plain data: kept in checkpoints and exports, and enough to do it again."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from blocks.base import Grid, Site, TokenMixer
from sparsight.surgery.replace import finalize, replace
from sparsight.surgery.sites import SiteSelection, students

FORMAT = 1


def record_of(denoiser: nn.Module) -> dict[str, Any]:
    """JSON-able record of the mixers in a denoiser."""
    return {
        "format": FORMAT,
        "sites": {path: _describe(student.mixer) for path, student in students(denoiser).items()},
    }


def _describe(mixer: TokenMixer) -> dict[str, Any]:
    return {
        "class_path": f"{type(mixer).__module__}.{type(mixer).__qualname__}",
        "options": _plain(mixer.options),
        "site": asdict(mixer.site),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a mixer's options must be plain data, got {value!r}")


def apply_record(denoiser: nn.Module, record: Mapping[str, Any]) -> None:
    """Put the recorded mixers, with fresh weights, in the place of the self-attentions; no teacher is kept.

    Raises:
        ValueError: The record is of another format or names a site that the denoiser lacks.
    """
    if record.get("format") != FORMAT:
        raise ValueError(f"record format {record.get('format')!r} is not known; this version reads format {FORMAT}")
    recorded = record["sites"]
    replace(denoiser, lambda site: mixer_from(recorded[site.path]), SiteSelection(include=list(recorded)))
    finalize(denoiser)


def mixer_from(entry: Mapping[str, Any]) -> TokenMixer:
    """The recorded mixer with fresh weights.

    Raises:
        ValueError: The class cannot be imported or is no mixer.
    """
    module_name, _, class_name = entry["class_path"].rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"mixer {entry['class_path']} cannot be imported: is its file on the path?") from error
    if not (isinstance(found, type) and issubclass(found, TokenMixer)):
        raise ValueError(f"{entry['class_path']} is no TokenMixer")
    site = Site(**{**entry["site"], "grid": Grid(**entry["site"]["grid"])})
    return found(site, **entry["options"])
