"""What the studies of token mixers share: training an arm, drawing its samples, rows of what was measured.

Each step can be broken off and started again; nothing that is there is made twice.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.study_arms import SAME_COST, UNTRAINED, name_of, training_options
from sparsight.command.cli import main as sparsight
from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError
from sparsight.common.tables import json_text
from sparsight.diffusion.measure.report import replacement_report
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import sample, starting_noise
from sparsight.evaluation.images import (
    EfficientNetLite0Features,
    FrechetDistance,
    KernelDistance,
    Reference,
    in_batches,
)
from sparsight.evaluation.images.images import to_uint8
from sparsight.evaluation.images.set_distance import SetDistance

PROTOCOL = ("samples", "size_samples", "steps", "guidance", "dtype")  # what all samples of a folder share

ROWS, PROTOCOL_FILE = "rows.jsonl", "protocol.json"


@dataclass(frozen=True)
class Subject:
    """What a study distils.

    Args:
        config: Configuration of an arm's training.
        teacher: Shipped model or pipeline folder.
        arms: Command-line options of each arm.
        size: Side in pixels at which the teacher was trained.
        conditions: What the samples with these numbers show, as a batch holds it.
    """

    config: str
    teacher: str
    arms: Mapping[str, Sequence[str]]
    size: int
    conditions: Callable[[Tensor], dict[str, Any]]


# -- training ------------------------------------------------------------------------------------------------------


def train(
    subject: Subject,
    arm: str,
    root: Path,
    *,
    budget: str | None,
    training_seed: int,
    precision: str,
    options: Sequence[str] = (),
) -> None:
    """Distil one arm, from its last checkpoint if it was broken off; its student appears as ``<run>/student``.

    An arm without parameters is exported as it is.
    """
    folder = root / name_of(arm, budget, training_seed)
    if (folder / "training.json").is_file():
        return
    arguments = ["--config", subject.config, *subject.arms[arm], "--trainer.default_root_dir", str(folder)]
    arguments += ["--model.teacher", subject.teacher]
    record: dict[str, Any] = {"arm": folder.name, "steps": 0, "validation": {}}
    if arm in UNTRAINED:
        sparsight(["export", *arguments, "--output", str(folder / "student")])
    else:
        how = ["--trainer.precision", precision, *training_options(arm, budget, training_seed), *options]
        record |= _distilled(folder, [*arguments, *how])
    report = replacement_report(DiffusionModel.from_pretrained(str(folder / "student")).denoiser)
    record |= {"parameters": report.parameters_after, "flops": report.flops_after, "kept": report.kept}
    record |= {"teacher_parameters": report.parameters_before, "teacher_flops": report.flops_before}
    write_text(folder / "training.json", json_text(record))


def _distilled(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Train a run, and tell what it took."""
    checkpoints = sorted(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = ["--ckpt_path", str(checkpoints[-1])] if checkpoints else []
    begin = time.perf_counter()
    trainer = sparsight(["fit", *arguments, *resumed]).trainer
    return {
        "steps": trainer.global_step,
        "resumed": bool(checkpoints),
        "seconds": round(time.perf_counter() - begin),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "validation": {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name},
    }


def training_of(root: Path, run: str) -> dict[str, Any] | None:
    """What ``train`` wrote of a run; none if it has not ended, as the teacher's never does."""
    path = root / run / "training.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


# -- samples -------------------------------------------------------------------------------------------------------


def keep_protocol(root: Path, protocol: argparse.Namespace) -> None:
    """Write how samples are drawn beside them; another way of drawing needs another folder.

    Raises:
        SystemExit: The folder's samples were drawn otherwise.
    """
    path = root / PROTOCOL_FILE
    wanted = {name: getattr(protocol, name) for name in PROTOCOL}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else wanted
    other = [f"{name} {kept[name]} (now {value})" for name, value in wanted.items() if kept[name] != value]
    if other:
        raise SystemExit(f"samples in {root} were drawn with {', '.join(other)}: say the same, or give another --root")
    write_text(path, json_text(wanted))


def sample_file(root: Path, arm: str, *, seed: int, size: int) -> Path:
    """Where the samples of an arm are kept."""
    return root / arm / f"samples_seed{seed}_size{size}.safetensors"


def draw(subject: Subject, arm: str, root: Path, *, seed: int, size: int, protocol: argparse.Namespace) -> None:
    """Draw and keep samples; equal seeds give every arm the same noise and conditions."""
    path = sample_file(root, arm, seed=seed, size=size)
    if path.is_file():
        return
    model = DiffusionModel.from_pretrained(subject.teacher if arm == "teacher" else str(root / arm / "student"))
    model.denoiser.eval()
    channels = model.sample_shape()[0]
    images = []
    begin = time.perf_counter()
    for index in torch.arange(protocol.samples if size == subject.size else protocol.size_samples).split(100):
        noise = starting_noise((channels, size, size), seed=seed, index=index)
        with torch.autocast("cpu", torch.bfloat16, enabled=protocol.dtype == "bfloat16"):
            latents = sample(model, subject.conditions(index), noise, steps=protocol.steps, guidance=protocol.guidance)
        images.append(to_uint8(model.decode(latents)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"images": torch.cat(images)}, partial)
    partial.rename(path)
    print(f"{arm}, seed {seed}, {size} pixels: {time.perf_counter() - begin:.0f} s", flush=True)


def drawn(path: Path, side: int) -> Tensor:
    """Kept samples in [0, 1], at one size whatever they were drawn at."""
    images = load_file(path)["images"].float() / 255
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


# -- rows ----------------------------------------------------------------------------------------------------------


def distances_to(
    real: Callable[[], Tensor], root: Path, *, name: str, count: int, subset_size: int, ending: str = ""
) -> dict[str, SetDistance]:
    """Frechet and kernel distance to real images, whose features are kept; the kernel distance bears few samples.

    Args:
        real: Gives the images in [0, 1] (N, C, H, W), where their features are not there yet.
        root: Folder of the features.
        name: What the images are.
        count: How many there are.
        subset_size: Of the kernel distance.
        ending: Of the names of files, where there are several kinds of real images.
    """
    extractor = EfficientNetLite0Features()
    files = {kind: str(root / f"{kind}{ending}.safetensors") for kind in ("reference", "features")}
    metrics: dict[str, SetDistance] = {
        "frechet": FrechetDistance(extractor, Reference(files["reference"], name, count)),
        "kernel": KernelDistance(extractor, Reference(files["features"], name, count), subset_size=subset_size),
    }
    for metric in metrics.values():
        if metric.wants_reference:
            metric.with_reference(in_batches(real()))
    return metrics


def measured(metrics: Mapping[str, SetDistance], images: Tensor) -> dict[str, float]:
    """Every distance of these images; the first value that a metric answers is its own, others are deviations."""
    return {name: next(iter(metric.of(in_batches(images)).values())) for name, metric in metrics.items()}


def rmse_to_teacher(images: Tensor, root: Path, *, seed: int, size: int) -> float | None:
    """Root mean square difference of pixels in [0, 1] to the teacher's samples from the same noise."""
    path = sample_file(root, "teacher", seed=seed, size=size)
    return float((images - drawn(path, images.shape[-1])).square().mean().sqrt()) if path.is_file() else None


def read_rows(root: Path) -> list[dict[str, Any]]:
    """Rows judged so far.

    Raises:
        ConfigurationError: A line is damaged; the message says which.
    """
    path = root / ROWS
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{path}, line {number} is damaged: delete it, and it is judged again") from error
    return rows


def add_row(root: Path, **row: object) -> None:
    """Append a row and show it."""
    line = json.dumps(row)
    with (root / ROWS).open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


# -- cost ----------------------------------------------------------------------------------------------------------


def cost(subject: Subject, arm: str, root: Path) -> None:
    """Time of one site and of the whole denoiser against the teacher's, over sizes, into ``<arm>/benchmark``."""
    folder = root / arm / "benchmark"
    if arm == "teacher" or arm in SAME_COST or (folder / "benchmark.json").is_file():
        return
    arguments = ["--trainer.logger=false", "--trainer.callbacks=[]", "--tokens=[256,1024,4096]", "--backward=false"]
    arguments += ["--model.teacher", subject.teacher, "--runs=7", "--clock=processor", "--output", str(folder)]
    sparsight(["benchmark", "--config", subject.config, *subject.arms[arm], *arguments])
