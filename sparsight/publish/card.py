"""What every model card says in the same words: licence, training, measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sparsight.publish.facts import Base, Run, StageFacts, versions
from sparsight.publish.secrets import without_place
from sparsight.publish.shared_config import shared_config

LICENCE = ("license", "license_name", "license_link")
CONFIG = "training.yaml"


def stated_licence(licence: Mapping[str, Any], base: Base | None) -> str:
    """The licence in a sentence."""
    name = licence.get("license_name", licence.get("license"))
    if name is not None:
        return f"Licence: `{name}`{'' if base is None else ', as its base'}."
    where = "" if base is None else f", and none could be read from the card of `{base.name}`"
    return f"No licence was stated{where}: settle that before you share it."


def training_text(run: Run, *, untrained: str | None = None) -> str:
    """How the model was trained, with the configuration to repeat it.

    Args:
        run: The run.
        untrained: What should have been trained and was not.
    """
    if run.steps == 0:
        told = f"**Not trained**: {untrained}." if untrained else "None, and none is needed for what was changed."
        return f"{told} Versions at export: {_versions()}."
    lines = []
    if run.stages:
        lines += ["| stage | steps | learning rate |", "|---|---|---|"]
        lines += [f"| {s.objective} | {_steps(s)} | {s.rate} |" for s in run.stages]
        lines += [""]
    left_out = f", {run.skipped} of them left out for numbers that were not finite" if run.skipped else ""
    lines += [f"- Optimiser steps taken: {'not recorded' if run.steps is None else run.steps}{left_out}"]
    lines += [f"- Weights: {run.weights}"]
    lines += [f"- Hardware: {run.hardware or 'not recorded'}"]
    lines += [f"- Versions at export: {_versions()}"]
    if run.config is None:
        return "\n".join([*lines, "- The run's configuration was not recorded."])
    data = yaml.safe_load(shared_config(run.config)).get("data")
    if data is not None:
        lines += ["- Data:", "", "```yaml", yaml.safe_dump(data, sort_keys=False).strip(), "```"]
    lines += [
        "",
        f"To repeat it, with the configuration in `{CONFIG}`, where of absolute paths the last part is kept, and "
        "loggers and what is not Sparsight's own are left out:",
        "",
    ]
    return "\n".join([*lines, "```sh", f"sparsight fit --config {CONFIG}", "```"])


def _versions() -> str:
    return ", ".join(f"{name} {value}" for name, value in versions().items())


def _steps(stage: StageFacts) -> str:
    return f"{stage.steps}" if stage.steps >= stage.planned else f"{stage.steps} of {stage.planned}, not finished"


def measured_text(run: Run) -> str:
    """Table of what was measured."""
    if not run.metrics:
        return "Nothing was measured for this export."
    rows = [f"| {m.name} | {m.value:.4g} | {without_place(m.protocol)} |" for m in run.metrics]
    return "\n".join(["| metric | value | protocol |", "|---|---|---|", *rows])
