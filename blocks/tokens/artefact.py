"""What calibrations leave: plain data that say what model and prompts they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Artefact = dict[str, Any]
FACTS = ("model", "revision", "shape", "template", "resolution")


def read_artefact(given: str | Mapping[str, Any], *, kind: str) -> Artefact:
    """An artefact from its file or content.

    Args:
        given: File, or what it holds: ``kind``, ``made_with`` (see ``FACTS``) and ``values``.
        kind: Name of the calibration that makes such.

    Raises:
        ValueError: It is no artefact of that kind.
    """
    found, told = given, "artefact"
    if isinstance(given, str):
        told = f"artefact {given}"
        try:
            found = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise ValueError(f"{told} is no JSON file that can be read: {problem}") from problem
    if not isinstance(found, Mapping) or not {"kind", "made_with", "values"} <= set(found):
        raise ValueError(f"{told} holds no kind, made_with and values, as calibrations write them")
    if found["kind"] != kind:
        raise ValueError(f"{told} comes from {found['kind']}, expected one of {kind}")
    return {**found, "made_with": dict(found["made_with"]), "values": dict(found["values"])}


def check_artefact(artefact: Artefact, model: Mapping[str, Any], *, method: str) -> None:
    """See that an artefact was made with a model like this one; facts that one side does not know are not compared.

    Args:
        artefact: What is used.
        model: Facts of the model.
        method: Who uses it.

    Raises:
        ValueError: A fact is another one.
    """
    made_with = artefact["made_with"]
    for name in FACTS:
        before, now = made_with.get(name), model.get(name)
        if before is not None and now is not None and before != now:
            raise ValueError(
                f"{method}: the artefact was made with {name} {before}, and the model has {now}: calibrate it anew"
            )
