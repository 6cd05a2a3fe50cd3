"""What every arm of the region study starts from: the assembled model with a projector that was aligned once.

The projector is committed in bfloat16 (2 MB), so that a fresh machine starts from the same weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.region_arms import stage
from benchmarks.region_data import captions, questions
from benchmarks.region_runs import CONFIG, data_options, model_options, resumed, values
from sparsight.command.cli import main as sparsight
from sparsight.lvlm.model.assemble import assemble

ALIGN_STEPS = 300
ALIGN_RATE = 1e-3
WEIGHTS = "model.safetensors"
START = "start"  # folder of the model that all arms start from
PART = "multi_modal_projector"  # in the names of its weights


def start_from(root: Path, projector: Path) -> Path:
    """The folder that every arm starts from, made of the assembled model and the committed projector.

    Args:
        root: Of the study.
        projector: Safetensors file; where it is missing, the projector is aligned and the file written.
    """
    base, start = root / "base", root / START
    if start.is_dir():
        return start
    if not base.is_dir():
        assemble(base)
    if not projector.is_file():
        align(root, base, projector)
    making = root / f"{START}.making"
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(base, making)
    put_projector(making / WEIGHTS, projector)
    making.rename(start)
    return start


def align(root: Path, base: Path, projector: Path) -> None:
    """Train the projector alone on names, and keep it."""
    run, export = root / "align", root / "aligned"
    options = ["--config", CONFIG, *model_options(base), "--seed_everything", "0", "--data.seed=0"]
    options += stage(["projector"], steps=ALIGN_STEPS, rate=ALIGN_RATE, projector_rate=ALIGN_RATE)
    options += data_options(captions(), questions("rates", tasks=["naming"]))
    sparsight(["fit", *options, "--trainer.default_root_dir", str(run), "--trainer.limit_val_batches=0", *resumed(run)])
    if not export.is_dir():
        sparsight(["export", *options, *resumed(run), "--weights=raw", "--output", str(export)])
    take_projector(export / WEIGHTS, projector)


def take_projector(weights: Path, projector: Path) -> None:
    """Keep the projector of a model's weights, in bfloat16."""
    found = {name: value.to(torch.bfloat16) for name, value in load_file(weights).items() if PART in name}
    projector.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, projector)


def put_projector(weights: Path, projector: Path) -> None:
    """Put a kept projector into a model's weights.

    Raises:
        SystemExit: It is not that of such a model.
    """
    model, kept = load_file(weights), load_file(projector)
    if not kept or values(model, PART) != values(kept, PART):
        raise SystemExit(f"{projector} holds {values(kept, PART)}, the model {values(model, PART)}: take it away")
    save_file(model | {name: value.to(model[name].dtype) for name, value in kept.items()}, weights, {"format": "pt"})
