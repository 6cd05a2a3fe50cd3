"""What the card of an export tells, as plain data: the model, the run, and what was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from sparsight import __version__
from sparsight.common.disk.shipped import resolve
from sparsight.common.errors import reason_of
from sparsight.common.text import read_json
from sparsight.publish.geneval import geneval_scores
from sparsight.publish.secrets import without_place


@dataclass(frozen=True)
class Metric:
    """One measured value, with how it was measured: of what, against what, how many, by which command."""

    name: str
    value: float
    protocol: str


@dataclass(frozen=True)
class StageFacts:
    """How much of a stage was trained.

    Args:
        objective: What was optimised.
        steps: Optimiser steps taken in it.
        planned: Steps that it was to have.
        rate: Learning rate and schedule.
    """

    objective: str
    steps: int
    planned: int
    rate: str


@dataclass(frozen=True)
class Run:
    """The run that an export comes from.

    Args:
        steps: Optimiser steps taken; none if the module is to tell.
        skipped: How many of them were left out, because a loss or gradient was not finite.
        stages: The stages that were begun.
        weights: Which weights were exported, in words.
        hardware: Where it was trained; none if that is not known.
        config: Text of the run's configuration.
        metrics: What was measured.
        samples: Image of samples, for the card; none if the run drew none.
    """

    steps: int | None = None
    skipped: int = 0
    stages: Sequence[StageFacts] = ()
    weights: str = "as they were in memory"
    hardware: str | None = None
    config: str | None = None
    metrics: Sequence[Metric] = ()
    samples: Path | None = None


def newest_grid(folder: Path, *, steps: int) -> Path | None:
    """The last image of samples that a run drew into its log folder until so many steps; none if it drew none."""
    drawn = {int(path.stem.partition("_")[2]): path for path in (folder / "samples").glob("step_*.png")}
    return drawn[max(step for step in drawn if step <= steps)] if any(step <= steps for step in drawn) else None


@dataclass(frozen=True)
class Base:
    """The model that an export was made from.

    Args:
        name: Hub id, or the bare name of a local folder.
        on_hub: Whether the name is a hub id.
        revision: Git revision on the hub.
        variant: Weight variant.
        metadata: Its card's metadata.
    """

    name: str
    on_hub: bool = False
    revision: str | None = None
    variant: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def describe_base(source: str, *, revision: str | None = None, variant: str | None = None) -> Base:
    """What is known of a base model by its folder, shipped name or hub id; its card is read if it can be reached."""
    path = Path(resolve(source))
    options: dict[str, Any] = {"revision": revision, "variant": variant}
    if path.exists():
        readme = path / "README.md"
        return Base(path.resolve().name, metadata=_metadata(readme) if readme.is_file() else {}, **options)
    try:
        metadata = _metadata(Path(hf_hub_download(source, "README.md", revision=revision)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        metadata = {}
    return Base(without_place(source), on_hub=True, metadata=metadata, **options)


def _metadata(readme: Path) -> dict[str, Any]:
    return ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict()


def read_metrics(path: str | Path) -> list[Metric]:
    """Metrics from a JSON file: a list of objects with ``name``, ``value`` and ``protocol``.

    A file that ends in ``.jsonl`` is taken for one that GenEval's scorer wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds something else.
    """
    if Path(path).suffix == ".jsonl":
        scores, protocol = geneval_scores(Path(path))
        return [Metric(name, value, protocol) for name, value in scores.items()]
    try:
        entries = read_json(Path(path))
        return [Metric(str(entry["name"]), float(entry["value"]), str(entry["protocol"])) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        wanted = '[{"name": ..., "value": ..., "protocol": ...}, ...]'
        raise ValueError(f"{path} must hold a JSON list like {wanted}, but: {reason_of(error)}") from error


def versions() -> dict[str, str]:
    """Versions that decide what a run computes."""
    packages = ("torch", "diffusers", "transformers", "lightning", "safetensors")
    return {"sparsight": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}


def hardware() -> str:
    """This machine in a few words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
