"""Where an exported image-text model comes from: its base, what was tuned, which layers were taken out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsight.common.errors import reason_of
from sparsight.common.formats import check_format

FILE = "sparsight.json"
NEEDED = {"base_hash", "base_layers", "tuned_layers_now", "kept_of_first", "earlier"}
FORMAT = 1  # of the first versions it is called `version`


def provenance(
    *,
    base: str,
    revision: str | None,
    base_hash: str,
    depth: int,
    tuned: Sequence[int],
    parts: Sequence[str],
    removed: Sequence[int],
    earlier: Mapping[str, Any] | None,
    selection: Mapping[str, Any] | None = None,
    pruning: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The record of one run, with that of the run before it.

    Args:
        base: Folder's name or hub id of the model that was loaded.
        revision: Its git revision.
        base_hash: Hash of its weights.
        depth: Its number of decoder layers.
        tuned: Layers that were tuned, in its numbering; none if the projector alone was trained.
        parts: What was trained at some time: ``layers``, ``projector``.
        removed: Layers that were taken out, in its numbering.
        earlier: The base's own record. Layers that earlier runs tuned are among ``tuned_layers_now`` too.
        selection: Rule by which the tuned layers were chosen, with its options.
        pruning: Steps at which layers left, in order, each with its ``layers`` in the base's numbering and what was
            ``measured``: ``score``, ``values`` of all layers, ``samples`` and ``data_sha256`` of each process; none if
            the configuration named the layers.
    """
    kept = [index for index in range(depth) if index not in set(removed)]
    first = layers_of_first(earlier, depth)
    ever_tuned = {*tuned, *([] if earlier is None else earlier["tuned_layers_now"])}
    return {
        "format": FORMAT,
        "base": base,
        "revision": revision,
        "base_hash": base_hash,
        "base_layers": depth,
        "trained": list(parts),
        "tuned_layers": list(tuned),
        "selection": None if not tuned or selection is None else dict(selection),
        "removed_layers": sorted(removed),
        "pruning": [dict(step) for step in pruning],
        "tuned_layers_now": [new for new, old in enumerate(kept) if old in ever_tuned],
        "kept_of_first": [first[index] for index in kept],
        "earlier": earlier,
    }


def layers_of_first(record: Mapping[str, Any] | None, depth: int) -> list[int]:
    """Which layers of the first model, before all runs, a model of ``depth`` layers and this record has."""
    return list(range(depth)) if record is None else list(record["kept_of_first"])


def first_depth(record: Mapping[str, Any] | None, depth: int) -> int:
    """How many layers the first model had."""
    while record is not None:
        record, depth = record["earlier"], record["base_layers"]
    return depth


def read_provenance(source: str | Path) -> dict[str, Any] | None:
    """The record in a folder; none if it has none, or ``source`` is no folder.

    Raises:
        ValueError: The record is damaged, or of a later format.
    """
    path = Path(source, FILE)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {reason_of(error)}") from error
    told = {"format": record.get("version")} | record if isinstance(record, dict) else None
    check_format(told, FORMAT, str(path))
    missing = sorted(NEEDED - record.keys())
    if missing:
        raise ValueError(f"{path} is damaged: it has no {', '.join(missing)}")
    return record
