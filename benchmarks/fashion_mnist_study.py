"""What each token mixer is worth on the shipped Fashion-MNIST teacher, under one training budget.

    python -m benchmarks.fashion_mnist_study                       everything; what was done before is kept
    python -m benchmarks.fashion_mnist_study --only train --arms no_mixing
    python -m benchmarks.fashion_mnist_study --only draw judge report --arms teacher delta_conv_default
    python -m benchmarks.fashion_mnist_study --budget screen --reference train --seeds 9    to choose by
    python -m benchmarks.fashion_mnist_study --budget finalist --training_seeds 0 1 2 --arms focal_convolved

Every arm is trained, drawn and judged before the next one, so that a row is there as soon as it can be. What is chosen
is chosen by distances to training images and a sampling seed of its own, and reported against test images.

Steps: ``train`` (config experiment/fashion_mnist_study with another mixer for each arm), ``draw`` (samples of every
arm from the same noise), ``judge`` (distances and classifier accuracy), ``cost`` (time and FLOPs over sizes) and
``report`` (tables and plots). Each can be broken off and started again. Needs the four idx files (Debian: apt-get
install dataset-fashion-mnist) and the demo extra.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.fashion_mnist import accuracy, fashion_mnist, trained_classifier
from benchmarks.fashion_mnist_report import write_report
from benchmarks.study_arms import (
    ARMS,
    BUDGETS,
    HYBRID,
    SAME_COST,
    name_of,
    training_options,
)
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

CONFIG = "experiment/fashion_mnist_study"
TEACHER = "fashion_mnist_dit"
CLASSES = 10
TRAINED_SIZE = 32  # pixels
KEPT_BY_HYBRID = 2
STEPS = ("train", "draw", "judge", "cost", "report")
PROTOCOL = ("samples", "size_samples", "steps", "guidance", "dtype")  # what all samples of a folder share


# -- training ------------------------------------------------------------------------------------------------------


def train(arm: str, root: Path, *, budget: str | None, training_seed: int, precision: str) -> None:
    """Distil one arm, from its last checkpoint if it was broken off; its student appears as ``<run>/student``."""
    folder = root / name_of(arm, budget, training_seed)
    if (folder / "training.json").is_file():
        return
    arguments = ["fit", "--config", CONFIG, *ARMS[arm], "--trainer.default_root_dir", str(folder)]
    arguments += ["--trainer.precision", precision, *training_options(budget, training_seed)]
    if arm == HYBRID:
        arguments += ["--model.sites", json.dumps({"exclude": worst_sites(root)})]
    checkpoints = sorted(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        arguments += ["--ckpt_path", str(checkpoints[-1])]
    begin = time.perf_counter()
    trainer = sparsight(arguments).trainer
    record = {
        "arm": folder.name,
        "steps": trainer.global_step,
        "resumed": bool(checkpoints),
        "seconds": round(time.perf_counter() - begin),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "validation": {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name},
    }
    report = replacement_report(DiffusionModel.from_pretrained(str(folder / "student")).denoiser)
    record |= {"parameters": report.parameters_after, "flops": report.flops_after, "kept": report.kept}
    record |= {"teacher_parameters": report.parameters_before, "teacher_flops": report.flops_before}
    write_text(folder / "training.json", json_text(record))


def worst_sites(root: Path) -> list[str]:
    """The sites at which the default student is farthest from its teacher."""
    path = root / "delta_conv_default" / "training.json"
    if not path.is_file():
        raise SystemExit(f"{HYBRID} keeps the worst sites of delta_conv_default: train that arm first")
    prefix = "val/relative_l2/"
    errors = {n.removeprefix(prefix): e for n, e in json.loads(path.read_text())["validation"].items() if prefix in n}
    return sorted(errors, key=lambda site: -errors[site])[:KEPT_BY_HYBRID]


# -- samples -------------------------------------------------------------------------------------------------------


def keep_protocol(root: Path, protocol: argparse.Namespace) -> None:
    """Write how samples are drawn beside them; another way of drawing needs another folder.

    Raises:
        SystemExit: The folder's samples were drawn otherwise.
    """
    path = root / "protocol.json"
    wanted = {name: getattr(protocol, name) for name in PROTOCOL}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else wanted
    other = [f"{name} {kept[name]} (now {value})" for name, value in wanted.items() if kept[name] != value]
    if other:
        raise SystemExit(f"samples in {root} were drawn with {', '.join(other)}: say the same, or give another --root")
    write_text(path, json_text(wanted))


def sample_file(root: Path, arm: str, *, seed: int, size: int) -> Path:
    """Where the samples of an arm are kept."""
    return root / arm / f"samples_seed{seed}_size{size}.safetensors"


def draw(arm: str, root: Path, *, seed: int, size: int, protocol: argparse.Namespace) -> None:
    """Draw and keep samples; equal seeds give every arm the same noise and labels."""
    path = sample_file(root, arm, seed=seed, size=size)
    if path.is_file():
        return
    model = DiffusionModel.from_pretrained(TEACHER if arm == "teacher" else str(root / arm / "student"))
    model.denoiser.eval()
    channels = model.sample_shape()[0]
    images = []
    begin = time.perf_counter()
    for index in torch.arange(protocol.samples if size == TRAINED_SIZE else protocol.size_samples).split(100):
        noise = starting_noise((channels, size, size), seed=seed, index=index)
        with torch.autocast("cpu", torch.bfloat16, enabled=protocol.dtype == "bfloat16"):
            latents = sample(model, {"label": index % CLASSES}, noise, steps=protocol.steps, guidance=protocol.guidance)
        images.append(to_uint8(model.decode(latents)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"images": torch.cat(images)}, partial)
    partial.rename(path)
    print(f"{arm}, seed {seed}, {size} pixels: {time.perf_counter() - begin:.0f} s", flush=True)


def drawn(path: Path) -> Tensor:
    """Kept samples in [0, 1], at 32 pixels whatever size they were drawn at."""
    images = load_file(path)["images"].float() / 255
    side = (TRAINED_SIZE, TRAINED_SIZE)
    return F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)


# -- judging -------------------------------------------------------------------------------------------------------


def judge(runs: Sequence[str], root: Path, protocol: argparse.Namespace) -> None:
    """Add a row for every file of samples that has none yet."""
    done = {(row["arm"], row["seed"], row["size"], row.get("reference", "test")) for row in read_rows(root)}
    wanted = [(r, s, z) for r in runs for z in protocol.sizes for s in protocol.seeds]
    wanted = [key for key in wanted if (*key, protocol.reference) not in done]
    wanted = [(run, s, z) for run, s, z in wanted if sample_file(root, run, seed=s, size=z).is_file()]
    if not wanted:
        return
    classifier, test_accuracy = trained_classifier(protocol.data, root / "classifier.safetensors")
    metrics = distances(root, protocol)
    shared = {"reference": protocol.reference}
    if not any(name == "real training images" for name, *_ in done):
        train_images, _ = fashion_mnist(protocol.data, train=True)
        for seed, part in enumerate(train_images[-3 * protocol.samples :].split(protocol.samples)):
            real = shared | measured(metrics, part)
            add_row(root, arm="real training images", seed=seed, size=TRAINED_SIZE, samples=len(part), **real)
        add_row(root, arm="real test images", seed=0, size=TRAINED_SIZE, accuracy=test_accuracy, reference="test")
    for run, seed, size in wanted:
        images = drawn(sample_file(root, run, seed=seed, size=size))
        labels = torch.arange(len(images)) % CLASSES
        row: dict[str, float | None] = {
            "accuracy": accuracy(classifier, images, labels),
            "rmse_to_teacher": rmse_to_teacher(images, root, seed=seed, size=size),
            **measured(metrics, images),
        }
        record = root / run / "training.json"
        training = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        add_row(root, arm=run, seed=seed, size=size, samples=len(images), **shared, **row, training=training)


def distances(root: Path, protocol: argparse.Namespace) -> dict[str, SetDistance]:
    """Distances to 10 000 real images, whose features are kept; the kernel distance bears few samples."""
    train = protocol.reference == "train"
    real = f"fashion-mnist-{protocol.reference}, padded to 32 pixels", 10_000
    extractor = EfficientNetLite0Features()
    ending = "_train.safetensors" if train else ".safetensors"
    metrics: dict[str, SetDistance] = {
        "frechet": FrechetDistance(extractor, Reference(str(root / f"reference{ending}"), *real)),
        "kernel": KernelDistance(extractor, Reference(str(root / f"features{ending}"), *real), subset_size=500),
    }
    for metric in metrics.values():
        if metric.wants_reference:
            images, _ = fashion_mnist(protocol.data, train=train)
            metric.with_reference(in_batches(images[:10_000]))
    return metrics


def measured(metrics: dict[str, SetDistance], images: Tensor) -> dict[str, float]:
    """Every distance of these images; the first value that a metric answers is its own, others are deviations."""
    return {name: next(iter(metric.of(in_batches(images)).values())) for name, metric in metrics.items()}


def rmse_to_teacher(images: Tensor, root: Path, *, seed: int, size: int) -> float | None:
    """Root mean square difference of pixels in [0, 1] to the teacher's samples from the same noise."""
    path = sample_file(root, "teacher", seed=seed, size=size)
    return float((images - drawn(path)).square().mean().sqrt()) if path.is_file() else None


def read_rows(root: Path) -> list[dict[str, Any]]:
    """Rows judged so far.

    Raises:
        ConfigurationError: A line is damaged; the message says which.
    """
    path = root / "rows.jsonl"
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
    with (root / "rows.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


# -- cost ----------------------------------------------------------------------------------------------------------


def cost(arm: str, root: Path) -> None:
    """Time of one site and of the whole denoiser against the teacher's, over sizes, into ``<arm>/benchmark``."""
    folder = root / arm / "benchmark"
    if arm == "teacher" or arm in SAME_COST or (folder / "benchmark.json").is_file():
        return
    arguments = ["--trainer.logger=false", "--trainer.callbacks=[]", "--tokens=[256,1024,4096]", "--backward=false"]
    sparsight(["benchmark", "--config", CONFIG, *ARMS[arm], *arguments, "--runs=7", "--output", str(folder)])


def main() -> None:
    """Run the chosen steps for the chosen arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps; all if not given")
    parser.add_argument("--arms", nargs="+", choices=["teacher", *ARMS], default=["teacher", *ARMS])
    parser.add_argument("--budget", choices=BUDGETS, help="steps of training; those of the configuration if not given")
    parser.add_argument("--training_seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", default="32-true", help="of training; that of all arms of a table")
    parser.add_argument("--reference", choices=["test", "train"], default="test", help="real images to compare with")
    parser.add_argument("--root", type=Path, default=Path("runs/fashion_mnist_study"))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="idx files")
    parser.add_argument("--samples", type=int, default=2000, help="samples of an arm and seed at 32 pixels")
    parser.add_argument("--size_samples", type=int, default=500, help="the same at other sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32], help="sides in pixels to sample at")
    parser.add_argument("--steps", type=int, default=10, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="autocast while sampling")
    parser.add_argument("--output", type=Path, help="folder of the report; `report` in the root if not given")
    arguments = parser.parse_args()
    root, only = arguments.root, arguments.only
    root.mkdir(parents=True, exist_ok=True)
    if {"draw", "judge", "report"} & set(only):
        keep_protocol(root, arguments)
    for arm, training_seed in itertools.product(arguments.arms, arguments.training_seeds):
        run = arm if arm == "teacher" else name_of(arm, arguments.budget, training_seed)
        if "train" in only and arm != "teacher":
            how = {"budget": arguments.budget, "training_seed": training_seed, "precision": arguments.precision}
            train(arm, root, **how)
        if "draw" in only and (arm == "teacher" or (root / run / "student").is_dir()):
            for size, seed in itertools.product(arguments.sizes, arguments.seeds):
                draw(run, root, seed=seed, size=size, protocol=arguments)
        if "judge" in only:
            judge([run], root, arguments)
    for arm in arguments.arms if "cost" in only else ():
        cost(arm, root)
    if "report" in only:
        protocol = (
            f"{arguments.samples} samples a seed, seeds {', '.join(map(str, arguments.seeds))}; DDIM "
            f"{arguments.steps} steps, guidance {arguments.guidance}, sampled under {arguments.dtype} autocast; "
            f"EfficientNet-Lite0 features at 112 pixels against 10 000 real {arguments.reference} images"
        )
        rows = [row for row in read_rows(root) if row.get("reference", "test") == arguments.reference]
        runs = itertools.product(ARMS, (None, *BUDGETS), arguments.training_seeds)
        order = ["teacher", *(name_of(*run) for run in runs)]
        write_report(root, arguments.output or root / "report", order=order, rows=rows, protocol=protocol)


if __name__ == "__main__":
    main()
