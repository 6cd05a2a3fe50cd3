"""The region study: which decoder layers of an image-text model are worth tuning, each arm at its own learning rate.

    python -m benchmarks.region_study --minutes 60                          what an hour allows, and goes on next time
    python -m benchmarks.region_study --only align rates tasks --arms all   which tasks count; commit what it decides
    python -m benchmarks.region_study --only rates --arms uniform lora_all

Steps, each of which does what no committed row says is done (benchmarks/visual_region): ``align`` (the start of all
arms), ``rates`` (every arm with three learning rates, first seed, that of all layers first), ``tasks`` (which tasks
count: a rule, on the arm that tunes all layers; no other arm is run before that is decided) and ``arms`` (three more
seeds of every arm at its best rate, on items of their own). Scores of layers are measured before the first arm that
chooses by them. Needs the four idx files and the emoji font (Debian: apt-get install dataset-fashion-mnist
fonts-noto-color-emoji) and the demo extra.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.region_arms import ARMS, UNTUNED, rates_of
from benchmarks.region_choice import FIRST_SEED, REFERENCE, best_rate, decide_tasks, read_tasks, sweep_key
from benchmarks.region_data import Split, questions
from benchmarks.region_rows import FOLDER, Budget, Rows
from benchmarks.region_runs import CONFIG, data_options, judge_start, model_options, run_once, tune_again
from benchmarks.region_start import START, start_from
from sparsight.command.cli import main as sparsight

STEPS = ("align", "rates", "tasks", "arms")
SEEDS = (1, 2, 3)  # arms are scored with; none of them chose a rate
GUESS = 15 * 60.0  # seconds of a run, before any was seen
SCORES = ["sparsight.lvlm.scores.MultimodalBlockInfluence", "sparsight.lvlm.scores.ImageAttention"]
BATCHES = 16


def main() -> None:
    """Do what is left of the chosen steps, as far as time allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps; all if not given")
    parser.add_argument("--arms", nargs="+", choices=[UNTUNED, *ARMS], default=[UNTUNED, *ARMS])
    parser.add_argument("--rates", nargs="+", type=float, help="in place of each arm's own three")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of the step `arms`")
    parser.add_argument("--minutes", type=float, help="begin no run that would not be done by then")
    parser.add_argument("--root", type=Path, default=Path("runs/region_study"), help="models and checkpoints")
    parser.add_argument("--rows", type=Path, default=FOLDER, help="folder of rows, committed")
    arguments = parser.parse_args()
    if FIRST_SEED in arguments.seeds:
        parser.error(f"seed {FIRST_SEED} has chosen the learning rates: score the arms with others")
    study = Study(arguments.root, Rows(arguments.rows), Budget(arguments.minutes))
    for step in [step for step in STEPS if step in arguments.only]:
        if not study.do(step, arms=arguments.arms, rates=arguments.rates, seeds=arguments.seeds):
            print(f"time is up in step {step}: the same command goes on")
            break


class Study:
    """What is left of the study.

    Args:
        root: Folder of models and checkpoints, not committed.
        rows: What was done.
        budget: How long to go on.
    """

    def __init__(self, root: Path, rows: Rows, budget: Budget) -> None:
        self.root, self.rows, self.budget = root, rows, budget
        self.projector = rows.folder / "projector.safetensors"

    def do(self, step: str, *, arms: Sequence[str], rates: Sequence[float] | None, seeds: Sequence[int]) -> bool:
        """Do a step; whether all of it is done."""
        if step == "align":
            return self._start()
        if step == "rates":
            return all(self.sweep(arm, rates) if arm != UNTUNED else self.judge("rates") for arm in arms)
        if step == "tasks":
            print(f"tasks: {decide_tasks(self.rows, rates_of(REFERENCE, rates)) or 'not all rates were run'}")
            return True
        first = UNTUNED not in arms or self.judge("arms", tasks=read_tasks(self.rows), text=True)
        tuned = [arm for arm in arms if arm != UNTUNED]
        return first and all(self.score_arm(arm, rates, seed=seed) for seed in seeds for arm in tuned)

    def judge(self, split: Split, **asked: Any) -> bool:
        """What all arms start from, on the items of a split; its row is beside those of the arms."""
        if UNTUNED in self.rows.read(split):
            return True
        options: dict[str, Any] = {"start": self.root / START, "folder": self.root / split / UNTUNED, "split": split}
        return self._start() and self.alone("judge", judge_start, self.rows, split, **options, **asked)

    def sweep(self, arm: str, given: Sequence[float] | None) -> bool:
        """An arm with each of its rates, first seed."""
        splits: dict[Split, dict[str, Any]] = {"rates": {}}
        if arm == REFERENCE:
            splits["tasks"] = {}
        else:
            decide_tasks(self.rows, ARMS[REFERENCE].rates)
            read_tasks(self.rows)  # what counts is decided before
        done = all(
            self._run("rates", sweep_key(arm, rate), arm=arm, rate=rate, seed=FIRST_SEED, splits=splits)
            for rate in rates_of(arm, given)
        )
        return done

    def score_layers(self) -> bool:
        """Scores of the layers of what all arms start from."""
        output = self.rows.folder / "scores.json"
        if output.is_file():
            return True
        return self._start() and self.alone("scores", score_layers, self.root, output)

    def score_arm(self, arm: str, given: Sequence[float] | None, *, seed: int) -> bool:
        """An arm at its best rate with a seed, on the items that decide."""
        tasks = read_tasks(self.rows)
        rate = best_rate(self.rows.read("rates"), arm, rates_of(arm, given), tasks)
        if rate is None:
            print(f"{arm}: not all of its rates were run")
            return True
        asked: dict[Split, dict[str, Any]] = {"arms": {"tasks": tasks, "text": True}}
        kept = self.folder_of(arm, seed) if ARMS[arm].loses else None
        return self._run("arms", f"{arm} {seed}", arm=arm, rate=rate, seed=seed, splits=asked, kept=kept)

    def folder_of(self, arm: str, seed: int) -> Path:
        """Where the tuned model of an arm that loses layers is."""
        return self.root / "tuned" / f"{arm}_{seed}"

    def tuned(self, arm: str, *, seed: int) -> bool:
        """See that the model of ``folder_of`` is there; whether time allowed it.

        Raises:
            SystemExit: The arm's rate is not known.
        """
        output = self.folder_of(arm, seed)
        rate = best_rate(self.rows.read("rates"), arm, ARMS[arm].rates, read_tasks(self.rows))
        if rate is None:
            raise SystemExit(f"{arm}: not all of its rates were run; `--only rates --arms {arm}` first")
        options: dict[str, Any] = {"arm": arm, "rate": rate, "seed": seed, "scores": self.rows.folder / "scores.json"}
        work = (self.root / START, self.root / "again" / output.name, output)
        return output.is_dir() or (self._start() and self.alone("arms", tune_again, *work, **options))

    def _run(self, step: str, key: str, **options: Any) -> bool:
        if key in self.rows.read(step):
            return True
        folder = self.root / step / key.replace(" ", "_")
        return self._prepared(options["arm"]) and self.alone(
            step, run_once, self.rows, step, key, start=self.root / START, folder=folder, **options
        )

    def _prepared(self, arm: str) -> bool:
        return self._start() and (not ARMS[arm].scores or self.score_layers())

    def _start(self) -> bool:
        return (self.root / START).is_dir() or self.alone("align", start_from, self.root, self.projector)

    def alone(self, kind: str, work: Callable[..., object], *arguments: Any, **options: Any) -> bool:
        """Do something in a process of its own, whose peak memory is then that of one run; whether time allowed it."""
        if not self.budget.allows(kind, guess=GUESS):
            return False
        begin = time.monotonic()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(work, *arguments, **options).result()
        self.budget.note(kind, time.monotonic() - begin)
        return True


def score_layers(root: Path, output: Path) -> None:
    """Measure the scores that arms choose by, on training questions."""
    found = root / "scores"
    scores = [f"--scores+={name}" for name in SCORES]
    data = data_options(questions("train"), questions("rates"))
    sparsight(
        [
            "analyze",
            "--config",
            CONFIG,
            *model_options(root / START),
            *data,
            *scores,
            f"--batches={BATCHES}",
            f"--output={found}",
        ]
    )
    output.write_bytes((found / "scores.json").read_bytes())


if __name__ == "__main__":
    main()
