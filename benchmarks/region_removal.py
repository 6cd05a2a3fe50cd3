"""Layers leave the tuned models of the region study: by four criteria with spacing, and what healing brings back.

    python -m benchmarks.region_removal --seeds 1 --minutes 60                  without healing, 0 to 6 layers
    python -m benchmarks.region_removal --seeds 1 --removed 4 --criteria angle region --healings hidden logits_layers

After the steps ``rates``, ``tasks`` and, for models that are there already, ``arms`` of benchmarks.region_study; a
tuned model that this machine does not have is tuned again. Models answer naming and choice of the items that score the
arms. Healing is 60 steps of the region and the projector, by weights or adapters as the arm was tuned, and beside the
model as it was before layers left: its last hidden states, its logits, every layer that is left, or nothing
(``answers``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from benchmarks.region_arms import ARMS, choice, stage
from benchmarks.region_data import questions
from benchmarks.region_orders import CRITERIA, DRAWN, MOST, drawn_order, measured_order
from benchmarks.region_rows import FOLDER, Budget, Rows, outcomes
from benchmarks.region_runs import CONFIG, SCORES_FILE, data_options, model_options, resumed
from benchmarks.region_study import SEEDS, Study
from lightning_modules.loses_layers import SITE
from sparsight.command.cli import main as sparsight
from sparsight.evaluation.questions.task_scores import TaskScores

TASKS = ["naming", "choice"]
BATCHES = 4  # of a score
STEPS, RATE = 60, 1e-4  # of healing
SEED = 100  # of the data of scores and of healing, one for all models
NONE = "none"
HEALINGS: dict[str, dict[str, float]] = {  # weights of what is compared with the model before layers left
    "answers": {},
    "hidden": {"hidden": 1.0},
    "logits": {"logits": 1.0},
    "layers": {"layers": 1.0},
    "logits_layers": {"logits": 1.0, "layers": 1.0},
}


def main() -> None:
    """Do what is left of the chosen removals, as far as time allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arms = [arm for arm in ARMS if ARMS[arm].loses]
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument("--removed", nargs="+", type=int, default=list(range(MOST + 1)), help="numbers of layers")
    parser.add_argument("--healings", nargs="+", choices=[NONE, *HEALINGS], default=[NONE])
    parser.add_argument("--minutes", type=float, help="begin no run that would not be done by then")
    parser.add_argument("--root", type=Path, default=Path("runs/region_study"), help="models and checkpoints")
    parser.add_argument("--rows", type=Path, default=FOLDER, help="folder of rows, committed")
    asked = parser.parse_args()
    if not set(asked.removed) <= set(range(MOST + 1)):
        parser.error(f"--removed is {asked.removed}; allowed: 0 to {MOST}")
    study = Study(asked.root, Rows(asked.rows), Budget(asked.minutes))
    for seed, arm in product(asked.seeds, asked.arms):
        options = {"criteria": asked.criteria, "removed": asked.removed, "healings": asked.healings}
        if not removals(study, arm, seed=seed, **options):
            print(f"time is up at {arm} {seed}: the same command goes on")
            break


def removals(
    study: Study, arm: str, *, seed: int, criteria: Sequence[str], removed: Sequence[int], healings: Sequence[str]
) -> bool:
    """Take layers out of one tuned model; whether all of it is done."""
    done = study.rows.read("removed")
    for healing, criterion in product(healings, criteria):
        counts = [count for count in sorted(removed) if count or healing == NONE]
        left = [count for count in counts if row_key(arm, seed, criterion, count, healing) not in done]
        if not left:
            continue
        if not study.tuned(arm, seed=seed):
            return False
        facts: dict[str, Any] = {"arm": arm, "seed": seed, "criterion": criterion}
        for group in [left] if healing == NONE else [[count] for count in left]:
            folder = study.root / "removal" / f"{arm}_{seed}_{criterion}_{group[0]}_{healing}"
            work = (study.rows, study.folder_of(arm, seed), folder)
            if healing == NONE:
                fits = study.alone(f"remove {len(group)}", remove, *work, **facts, removed=group)
            else:
                fits = study.alone("heal", heal, *work, **facts, removed=group[0], healing=healing)
            if not fits:
                return False
        done = study.rows.read("removed")
    return True


def options_of(tuned: Path, arm: str) -> list[str]:
    """Options that load a tuned model, and let its region and projector learn in the way of its arm."""
    twin = "lora_uniform" if ARMS[arm].lora else "uniform"
    seeds = ["--seed_everything", str(SEED), f"--data.seed={SEED}"]
    data = data_options(questions("train"), questions("arms", tasks=TASKS))
    return ["--config", CONFIG, *model_options(tuned), *choice(twin, seed=0, scores=tuned), *seeds, *data]


def remove(
    rows: Rows, tuned: Path, folder: Path, *, arm: str, seed: int, criterion: str, removed: Sequence[int]
) -> None:
    """Layers leave a tuned model by a criterion, and what is left answers; nothing is trained.

    Args:
        rows: Where rows are added, one for each number of layers.
        tuned: Folder of the model.
        folder: Of the run.
        arm: By which it was tuned.
        seed: With which it was.
        criterion: One of ``CRITERIA``.
        removed: Numbers of layers.
    """
    torch.set_num_threads(1)
    options = [*options_of(tuned, arm), *stage(["projector"], steps=1, rate=RATE, projector_rate=RATE)]
    options += ["--trainer.default_root_dir", str(folder)]
    cli = sparsight(["validate", *options, "--trainer.limit_val_batches=1"])
    order = known_order(rows, arm, seed, criterion)
    if order is None:
        order = order_of(cli, criterion)
        rows.add("orders", f"{arm} {seed} {criterion}", arm=arm, seed=seed, criterion=criterion, order=order)
    cli.trainer.limit_val_batches = 1.0
    for count in removed:
        begin = time.monotonic()
        cli.model.retired.set(order[:count])
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        add_row(rows, cli, begin, arm=arm, seed=seed, criterion=criterion, removed=count, healing=NONE)
    shutil.rmtree(folder, ignore_errors=True)


def order_of(cli: Any, criterion: str) -> list[int]:
    """In which order a criterion lets layers leave."""
    if criterion.startswith(DRAWN):
        return drawn_order(int(criterion.removeprefix(DRAWN)), cli.model.depth)
    cli.datamodule.setup("fit")
    drawn = islice(iter(cli.datamodule.train_dataloader()), BATCHES)
    batches = [move_data_to_device(batch, cli.model.device) for batch in drawn]
    with cli.trainer.precision_plugin.forward_context():
        return measured_order(cli.model, criterion, batches)


def heal(
    rows: Rows, tuned: Path, folder: Path, *, arm: str, seed: int, criterion: str, removed: int, healing: str
) -> None:
    """Layers leave a tuned model in the order that is known, the rest trains on for some steps, and answers.

    Raises:
        SystemExit: The order is not known: ``remove`` comes first.
    """
    torch.set_num_threads(1)
    order = known_order(rows, arm, seed, criterion)
    if order is None:
        raise SystemExit(
            f"in which order layers leave {arm} {seed} by {criterion} is not known: --healings {NONE} first"
        )
    begin = time.monotonic()
    names = [f"{SITE}{layer}" for layer in order[:removed]]
    schedule = {"shape": "one_shot", "begin": 0, "amount": removed, "order": names}
    callback = {"class_path": "callbacks.PruningSchedule", "init_args": schedule}
    score = {"class_path": "sparsight.lvlm.scores.AngularDistance"}
    options = [*options_of(tuned, arm), *stage(["layers", "projector"], steps=STEPS, rate=RATE, projector_rate=RATE)]
    options += ["--model.prune", json.dumps({"score": score, "protect_tuned": False})]
    options += [f"--model.healing.{name}={weight}" for name, weight in HEALINGS[healing].items()]
    options += [f"--trainer.val_check_interval={STEPS}", "--trainer.callbacks+", json.dumps(callback)]
    options += ["--trainer.default_root_dir", str(folder)]
    cli = sparsight(["fit", *options, *resumed(folder)])
    if not Path(cli.trainer.log_dir, SCORES_FILE).is_file():  # it was broken off after its last step
        cli = sparsight(["validate", *options, *resumed(folder)])
    add_row(rows, cli, begin, arm=arm, seed=seed, criterion=criterion, removed=removed, healing=healing)
    shutil.rmtree(folder)


def row_key(arm: str, seed: int, criterion: str, removed: int, healing: str) -> str:
    """The key of a row; where no layer is missing there is nothing to choose them by."""
    return f"{arm} {seed} {criterion if removed else 'any'} {removed} {healing}"


def known_order(rows: Rows, arm: str, seed: int, criterion: str) -> list[int] | None:
    """In which order layers leave, if a row says so."""
    row = rows.read("orders").get(f"{arm} {seed} {criterion}")
    return None if row is None else list(row["order"])


def add_row(rows: Rows, cli: Any, begin: float, *, removed: int, **facts: Any) -> None:
    """Keep what a model without layers answered."""
    scores = TaskScores.load(Path(cli.trainer.log_dir, SCORES_FILE))
    key = row_key(facts["arm"], facts["seed"], facts["criterion"], removed, facts["healing"])
    minutes = round((time.monotonic() - begin) / 60, 1)
    layers = cli.model.retired.indices
    rows.add("removed", key, **facts, removed=removed, layers=layers, right=outcomes(scores), minutes=minutes)


if __name__ == "__main__":
    main()
