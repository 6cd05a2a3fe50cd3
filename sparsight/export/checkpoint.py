"""Taking a checkpoint's weights for export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from sparsight.export.facts import Run

EMA = "TrainableEMA"


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
        ValueError: The checkpoint has no average, or does not fit the module or its teacher.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    if weights == "ema":
        _take_average(module, _average_in(checkpoint, path))
    return Run(
        steps=checkpoint.get("global_step"),
        stages=stages_of(module),
        weights="moving average" if weights == "ema" else "those of the last step",
        config=saved_config(Path(path)),
    )


def stages_of(module: Any) -> list[tuple[str, int, str]]:
    """(objective, steps, learning rate and schedule) of each stage, for modules that have stages."""
    stages = [] if getattr(module, "clock", None) is None else module.clock.stages
    return [(s.objective, s.steps, f"{getattr(s, 'rates', f'{s.lr:g}')}, {s.lr_schedule}") for s in stages]


def saved_config(checkpoint: Path) -> str | None:
    """Text of the ``config.yaml`` that the run wrote beside its folder of checkpoints, if it did."""
    path = checkpoint.resolve().parents[1] / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return text if isinstance(content, dict) and "model" in content else None


def _average_in(checkpoint: dict[str, Any], path: str | Path) -> dict[str, torch.Tensor]:
    states = checkpoint.get("callbacks", {})
    found = next((state for key, state in states.items() if key.startswith(EMA)), None)
    if found is None:
        raise ValueError(f"{path} holds no moving average (the run had no {EMA}): export with weights=raw")
    return found["average"]


@torch.no_grad()
def _take_average(module: Any, average: dict[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    unknown = sorted(average.keys() - parameters.keys())
    if unknown:
        raise ValueError(f"the moving average is of another module: it has {unknown[:3]}")
    for name, value in average.items():
        parameters[name].copy_(value)
