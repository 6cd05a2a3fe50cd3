"""What the leading token mixers are worth on the shipped text-to-image teacher, text kept exact.

    python -m benchmarks.emoji_study                                everything; what was done before is kept
    python -m benchmarks.emoji_study --only draw judge report --arms teacher
    python -m benchmarks.emoji_study --training_seeds 0 1 --arms focal_cells no_mixing

Runs whose rows are in benchmarks/emoji_rows are not made again, unless samples are drawn otherwise; a new folder begins
with those rows.

Steps: ``train`` (config experiment/emoji_study with another mixer for each arm), ``draw`` (samples of every arm from
the same noise and captions), ``judge`` (distances to other emoji, and whether captions are found again), ``cost`` (time
and FLOPs over sizes) and ``report`` (a table and a grid). Each can be broken off and started again. Needs Debian's
fonts-noto-color-emoji and the demo extra.

Captions are every one that the teacher was not trained on, twice, and each fifth of those that it was. A caption is
found when the judge of benchmarks/emoji.py fits it to the image better than 15 others of the same kind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.emoji import SIZE, CaptionJudge, Emoji, emoji, retrieval
from benchmarks.fashion_mnist_report import mean
from benchmarks.study_arms import ARMS, BUDGETS, name_of
from benchmarks.study_runs import (
    PROTOCOL_FILE,
    ROWS,
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
from sparsight.common.disk.files import write_text
from sparsight.common.tables import markdown_table, short
from sparsight.evaluation.images.set_distance import SetDistance

LEADERS = ("focal_cells", "neighborhood_9", "delta_conv_default", "linear_sana", "no_mixing")
COMMITTED = Path(__file__).parent / "emoji_rows"  # rows, and how their samples were drawn
STEPS = ("train", "draw", "judge", "cost", "report")
SHOWN = 10  # columns of the grid
LABELS = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance x 1000",
    "found_trained": "captions found, trained on",
    "found_held_out": "captions found, held out",
    "rmse_to_teacher": "distance to the teacher's samples",
}


@cache
def known() -> tuple[Emoji, Emoji]:
    """Training emoji and those held out."""
    return emoji()


@cache
def captions() -> list[str]:
    """What is drawn: held-out captions twice, then some of the training's."""
    training, held_out = known()
    return held_out.captions * 2 + training.captions[::5]


SUBJECT = Subject(
    config="experiment/emoji_study",
    teacher="emoji_sd3",
    arms=ARMS,
    size=SIZE,
    conditions=lambda index: {"caption": [captions()[number] for number in index.tolist()]},
)


def distances(root: Path) -> dict[str, SetDistance]:
    """Distances to the training emoji, whose features are kept."""
    images = known()[0].images
    name = "emoji of the teacher's training, 64 pixels"
    return distances_to(lambda: images, root, name=name, count=len(images), subset_size=100)


def found(judge: CaptionJudge, images: Tensor) -> dict[str, float]:
    """Shares of captions found again, of those that the teacher knows and of those that it does not."""
    shown = captions()[: len(images)]
    held_out = set(known()[1].captions)
    shares = {}
    for name, kept in (("found_held_out", True), ("found_trained", False)):
        rows = [number for number, caption in enumerate(shown) if (caption in held_out) is kept]
        candidates = list(dict.fromkeys(shown[number] for number in rows))
        own = torch.tensor([candidates.index(shown[number]) for number in rows])
        shares[name] = retrieval(judge.fit(images[rows], candidates), own)
    return shares


def take_up(root: Path, protocol: argparse.Namespace) -> None:
    """Begin a folder with the committed rows, if samples will be drawn as theirs were."""
    kept = json.loads((COMMITTED / PROTOCOL_FILE).read_text(encoding="utf-8"))
    if not (root / ROWS).exists() and all(getattr(protocol, name) == value for name, value in kept.items()):
        shutil.copyfile(COMMITTED / ROWS, root / ROWS)


def judge(runs: Sequence[str], root: Path, seeds: Sequence[int], *, judges: Any) -> None:
    """Add a row for every file of samples that has none yet."""
    done = {(row["arm"], row["seed"]) for row in read_rows(root)}
    wanted = [key for key in itertools.product(runs, seeds) if key not in done]
    wanted = [(run, seed) for run, seed in wanted if sample_file(root, run, seed=seed, size=SIZE).is_file()]
    if not wanted:
        return
    metrics, captions_judge = judges()
    _, held_out = known()
    if not any(name == "real" for name, _ in done):
        fits = captions_judge.fit(held_out.images, held_out.captions)
        row = {"kernel": measured(metrics, held_out.images)["kernel"], "found_held_out": retrieval(fits)}
        add_row(root, arm="real", seed=0, samples=len(held_out.images), **row)
    for run, seed in wanted:
        images = drawn(sample_file(root, run, seed=seed, size=SIZE), SIZE)
        row = measured(metrics, images) | found(captions_judge, images)
        apart = rmse_to_teacher(images, root, seed=seed, size=SIZE)
        training = training_of(root, run)
        add_row(root, arm=run, seed=seed, samples=len(images), **row, rmse_to_teacher=apart, training=training)


def write_report(root: Path, output: Path, order: Sequence[str], protocol: str) -> None:
    """Write ``tables.md`` and ``samples.png`` of all that was judged."""
    rows = read_rows(root)
    judged = [run for run in order if any(row["arm"] == run for row in rows)]
    of = {run: [row for row in rows if row["arm"] == run] for run in judged}
    lines = []
    for run in judged:
        training = of[run][0].get("training") or {}
        line = {"arm": run, "seeds": str(len(of[run])), "steps": str(training.get("steps", ""))}
        for name, label in LABELS.items():
            unit = 1000 if name == "kernel" else 1
            values = [unit * row[name] for row in of[run] if row.get(name) is not None]
            line[label] = short(mean(values)) if values else ""
        lines.append(line)
    text = f"{protocol}.\n\n{markdown_table(lines)}"
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "tables.md", text + "\n")
    files = [sample_file(root, run, seed=0, size=SIZE) for run in judged]
    shown = [drawn(path, SIZE)[-SHOWN:] for path in files if path.is_file()]
    if shown:
        save_image(torch.cat(shown), output / "samples.png", nrow=SHOWN, pad_value=1)
    print(text)


def main() -> None:
    """Run the chosen steps for the chosen arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps; all if not given")
    parser.add_argument("--arms", nargs="+", choices=["teacher", *ARMS], default=["teacher", *LEADERS])
    parser.add_argument("--budget", choices=BUDGETS, default="leader", help="steps of training")
    parser.add_argument("--training_seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", default="32-true", help="of training; that of all arms of a table")
    parser.add_argument("--root", type=Path, default=Path("runs/emoji_study"))
    parser.add_argument("--samples", type=int, default=533, help="samples of an arm and seed; 533 are all captions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=25, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="autocast while sampling")
    parser.add_argument("--output", type=Path, help="folder of the report; `report` in the root if not given")
    arguments = parser.parse_args()
    root, only = arguments.root, arguments.only
    root.mkdir(parents=True, exist_ok=True)
    arguments.size_samples = arguments.samples  # one size alone
    take_up(root, arguments)
    judged = {(row["arm"], row["seed"]) for row in read_rows(root)}
    if {"draw", "judge", "report"} & set(only):
        keep_protocol(root, arguments)
    judges = cache(lambda: (distances(root), CaptionJudge(known()[0])))  # made once, and only where there is need
    for arm, training_seed in itertools.product(arguments.arms, arguments.training_seeds):
        run = arm if arm == "teacher" else name_of(arm, arguments.budget, training_seed)
        if arm != "teacher" and all((run, seed) in judged for seed in arguments.seeds):
            continue
        if "train" in only and arm != "teacher":
            how = {"budget": arguments.budget, "training_seed": training_seed, "precision": arguments.precision}
            train(SUBJECT, arm, root, **how)
        if "draw" in only and (arm == "teacher" or (root / run / "student").is_dir()):
            for seed in arguments.seeds:
                draw(SUBJECT, run, root, seed=seed, size=SIZE, protocol=arguments)
        if "judge" in only:
            judge([run], root, arguments.seeds, judges=judges)
    for arm in arguments.arms if "cost" in only else ():
        cost(SUBJECT, arm, root)
    if "report" in only:
        protocol = (
            f"{arguments.samples} samples a seed, Euler {arguments.steps} steps, guidance {arguments.guidance}, "
            f"sampled under {arguments.dtype} autocast; EfficientNet-Lite0 features at 112 pixels against the emoji of "
            "the teacher's training"
        )
        runs = [name_of(*run) for run in itertools.product(ARMS, BUDGETS, arguments.training_seeds)]
        write_report(root, arguments.output or root / "report", ["real", "teacher", *runs], protocol)


if __name__ == "__main__":
    main()
