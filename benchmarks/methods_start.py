"""What every arm of the methods study works in: the assembled model with 256 image tokens, tuned without methods.

The projector is that of the region study, aligned on names; the adapters of the tuning are committed in bfloat16, so
that a fresh machine goes on with the same weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from benchmarks.methods_data import SIZE
from benchmarks.region_data import named
from benchmarks.region_rows import FOLDER as REGION
from benchmarks.region_runs import CONFIG, data_options, model_options, resumed, tuned
from benchmarks.region_start import WEIGHTS, put_projector
from sparsight.command.cli import main as sparsight
from sparsight.lvlm.model.assemble import assemble
from sparsight.lvlm.model.lora import LoRA, add_lora, is_adapter, merge_lora
from sparsight.lvlm.model.tower import find_parts

STEPS, BATCH, RATE = 200, 8, 1e-3
REGION_LAYERS = 20  # of 30, the last ones: below them nothing has to be remembered for a backward pass
ADAPTERS = LoRA(rank=8, alpha=16, dropout=0.0)
SHEETS = "benchmarks.methods_data.Sheets"
PREFIX = "model."  # of a module's parameters, before the names that the model has for them


def untuned(root: Path) -> Path:
    """The assembled model with the region study's projector, as a folder."""
    base, start = root / "base", root / "untuned"
    if not start.is_dir():
        if not base.is_dir():
            assemble(base, image_size=SIZE)
        making = root / "untuned.making"
        shutil.rmtree(making, ignore_errors=True)
        shutil.copytree(base, making)
        put_projector(making / WEIGHTS, REGION / "projector.safetensors")
        making.rename(start)
    return start


def tuned_from(root: Path, adapters: Path) -> Path:
    """The tuned model as a folder.

    Args:
        root: Of the study.
        adapters: Safetensors file; where it is missing, the model is tuned and the file written.
    """
    folder = root / "tuned"
    if folder.is_dir():
        return folder
    start = untuned(root)
    if not adapters.is_file():
        tune(start, root / "tuning", adapters)
    making = root / "tuned.making"
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(start, making)
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    put_adapters(model, adapters)
    model.save_pretrained(making)
    making.rename(folder)
    return folder


def tune(start: Path, run: Path, adapters: Path) -> None:
    """Tune the region on sheets, from the last checkpoint on if it was broken off, and keep its adapters."""
    rule = {"place": "top", "count": REGION_LAYERS}
    layers = {"class_path": "sparsight.lvlm.surgery.selection.Consecutive", "init_args": rule}
    stage = {"train": ["layers"], "steps": STEPS, "lr": RATE, "projector_lr": RATE}
    lora = {"rank": ADAPTERS.rank, "alpha": ADAPTERS.alpha, "dropout": ADAPTERS.dropout}
    options = ["--config", CONFIG, *model_options(start), "--model.layers", json.dumps(layers)]
    options += ["--model.lora", json.dumps(lora), "--model.stages", json.dumps([stage])]
    options += [*data_options(sheets(STEPS * BATCH, train=True), sheets(BATCH)), f"--data.batch_size={BATCH}"]
    options += ["--trainer.default_root_dir", str(run), "--trainer.limit_val_batches=0", "--trainer.precision=auto"]
    options += ["--trainer.checkpoint_every_n_steps=5", "--trainer.log_every_n_steps=5", "--seed_everything", "0"]
    sparsight(["fit", *options, *resumed(run)])
    _, checkpoint = tuned(run)
    keep_adapters(Path(checkpoint), adapters)


def sheets(count: int, *, train: bool = False) -> dict[str, object]:
    """Sheets as an option of the command."""
    found = named("Sheets", count=count, seed=0 if train else 1, train=train)
    return found | {"class_path": SHEETS}


def keep_adapters(checkpoint: Path, adapters: Path) -> None:
    """Keep the adapters of a checkpoint, in bfloat16, by the model's own names."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    found = {name.removeprefix(PREFIX): value.to(torch.bfloat16) for name, value in state.items() if is_adapter(name)}
    adapters.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, adapters)


def put_adapters(model: torch.nn.Module, adapters: Path) -> None:
    """Add kept adapters to a model's weights.

    Raises:
        SystemExit: They are not those of such a model.
    """
    parts = find_parts(model)
    depth = len(parts.layers)
    add_lora(model, parts, range(depth - REGION_LAYERS, depth), ADAPTERS)
    kept = {name: value.float() for name, value in load_file(adapters).items()}
    wanted = {name: value.shape for name, value in model.state_dict().items() if is_adapter(name)}
    if {name: value.shape for name, value in kept.items()} != wanted:
        raise SystemExit(f"{adapters} holds adapters of another model: take it away, and they are tuned anew")
    model.load_state_dict(kept, strict=False)
    merge_lora(model)
