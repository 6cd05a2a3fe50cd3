"""Taking a checkpoint's weights for export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_warn

from sparsight.common.checkpoint.file import local, read_checkpoint
from sparsight.common.checkpoint.run_record import FLAG_WINS, is_among
from sparsight.common.moved import as_now
from sparsight.common.plain import flatten
from sparsight.common.training.averaging import average_in
from sparsight.common.training.stage_clock import Staged
from sparsight.publish.facts import Run, StageFacts, newest_grid


def restore(module: Any, path: str | Path, *, weights: Literal["ema", "raw"]) -> Run:
    """Put a checkpoint's weights into a module.

    Args:
        module: The module that the checkpoint was saved from.
        path: Checkpoint file.
        weights: ``ema`` takes the average that TrainableEMA kept, ``raw`` the last weights.

    Returns:
        What the checkpoint, and the configuration saved beside it, tell about the run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint is damaged or at an address, has no average, or does not fit the module, its options
            or its teacher.
    """
    checkpoint = load_weights(module, path, weights=weights)
    return Run(
        steps=module.steps_taken,
        skipped=module.guard.skipped,
        stages=stages_of(module, module.steps_taken),
        weights="moving average" if weights == "ema" else "those of the last step",
        config=saved_config(Path(path), checkpoint.get("hyper_parameters", {})),
        samples=newest_grid(Path(path).resolve().parents[1], steps=module.steps_taken),
    )


def load_weights(module: Any, path: str | Path, *, weights: Literal["ema", "raw"]) -> dict[str, Any]:
    """Put a checkpoint's weights into a module of any kind; arguments and errors as ``restore``.

    Returns:
        The checkpoint.
    """
    checkpoint = read_checkpoint(local(path))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    if weights == "ema":
        _take_average(module, _average_in(checkpoint, path))
    return checkpoint


def stages_of(module: Any, steps: int) -> list[StageFacts]:
    """The stages that were begun when ``steps`` optimiser steps were taken, for modules that have stages."""
    if not isinstance(module, Staged):
        return []
    done = zip(module.clock.stages, module.clock.done(steps), strict=True)
    return [StageFacts(s.objective, taken, s.steps, f"{s.rates}, {s.lr_schedule}") for s, taken in done if taken > 0]


def saved_config(checkpoint: Path, options: Mapping[str, Any]) -> str | None:
    """Text of the ``config.yaml`` that the run wrote beside its folder of checkpoints, if it did.

    Args:
        checkpoint: The checkpoint.
        options: The module's options that it holds; a configuration with others is of another run, and no use.
    """
    path = checkpoint.resolve().parents[1] / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return None
    class_path = str(content["model"].get("class_path"))
    told, known = (as_now(class_path, flatten(each)) for each in (content["model"].get("init_args", {}), dict(options)))
    differ = [
        name
        for name in sorted(told.keys() & known.keys())
        if str(told[name]) != str(known[name]) and not is_among(name, FLAG_WINS)
    ]
    if differ:
        rank_zero_warn(f"{path} is not that of {checkpoint} ({differ[0]} differs): the card will tell of no data")
    return None if differ else text


def _average_in(checkpoint: dict[str, Any], path: str | Path) -> dict[str, torch.Tensor]:
    found = average_in(checkpoint.get("callbacks", {}))
    if found is None:
        raise ValueError(
            f"{path} holds no moving average (the run had no TrainableEMA): export its last weights with --weights raw"
        )
    return found


@torch.no_grad()
def _take_average(module: Any, average: dict[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    unknown = sorted(average.keys() - parameters.keys())
    if unknown:
        raise ValueError(f"the moving average is of another module: it has {unknown[:3]}")
    for name, value in average.items():
        parameters[name].copy_(value)
