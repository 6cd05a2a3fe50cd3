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
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.fashion_mnist import accuracy, fashion_mnist, trained_classifier
from benchmarks.fashion_mnist_report import write_report
from benchmarks.study_arms import ARMS, BUDGETS, HYBRID, name_of
from benchmarks.study_runs import (
    Subject,
    add_row,
    cost,
    distances_to,
    draw,
    drawn,
    keep_protocol,
    measured,
    read_rows,
    rmse_to_teacher,
    sample_file,
    train,
    training_of,
)
from sparsight.evaluation.images.set_distance import SetDistance

CLASSES = 10
TRAINED_SIZE = 32  # pixels
KEPT_BY_HYBRID = 2
STEPS = ("train", "draw", "judge", "cost", "report")
SUBJECT = Subject(
    config="experiment/fashion_mnist_study",
    teacher="fashion_mnist_dit",
    arms=ARMS,
    size=TRAINED_SIZE,
    conditions=lambda index: {"label": index % CLASSES},
)


def worst_sites(root: Path) -> list[str]:
    """The sites at which the default student is farthest from its teacher."""
    training = training_of(root, "delta_conv_default")
    if training is None:
        raise SystemExit(f"{HYBRID} keeps the worst sites of delta_conv_default: train that arm first")
    prefix = "val/relative_l2/"
    errors = {n.removeprefix(prefix): e for n, e in training["validation"].items() if prefix in n}
    return sorted(errors, key=lambda site: -errors[site])[:KEPT_BY_HYBRID]


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
        images = drawn(sample_file(root, run, seed=seed, size=size), TRAINED_SIZE)
        labels = torch.arange(len(images)) % CLASSES
        row: dict[str, float | None] = {
            "accuracy": accuracy(classifier, images, labels),
            "rmse_to_teacher": rmse_to_teacher(images, root, seed=seed, size=size),
            **measured(metrics, images),
        }
        training = training_of(root, run)
        add_row(root, arm=run, seed=seed, size=size, samples=len(images), **shared, **row, training=training)


def distances(root: Path, protocol: argparse.Namespace) -> dict[str, SetDistance]:
    """Distances to 10 000 real images."""
    train = protocol.reference == "train"
    return distances_to(
        lambda: fashion_mnist(protocol.data, train=train)[0][:10_000],
        root,
        name=f"fashion-mnist-{protocol.reference}, padded to 32 pixels",
        count=10_000,
        subset_size=500,
        ending="_train" if train else "",
    )


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
            kept = ["--model.sites", json.dumps({"exclude": worst_sites(root)})] if arm == HYBRID else []
            train(SUBJECT, arm, root, **how, options=kept)
        if "draw" in only and (arm == "teacher" or (root / run / "student").is_dir()):
            for size, seed in itertools.product(arguments.sizes, arguments.seeds):
                draw(SUBJECT, run, root, seed=seed, size=size, protocol=arguments)
        if "judge" in only:
            judge([run], root, arguments)
    for arm in arguments.arms if "cost" in only else ():
        cost(SUBJECT, arm, root)
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
