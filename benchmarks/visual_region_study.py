"""Which decoder layers of an image-text model are worth tuning, and which can then be removed, under equal budgets.

    python -m benchmarks.visual_region_study                                everything; what was done before is kept
    python -m benchmarks.visual_region_study --only train --arms uniform all --seeds 0
    python -m benchmarks.visual_region_study --only report

Steps: ``align`` (assemble the offline model, train its projector alone), ``score`` (``sparsight analyze``, for the arms
that choose by scores), ``train`` (config experiment/visual_region_study with other layers for each arm; every run ends
with likelihoods of the same items; their common start answers them too, as the arm ``untuned``), ``prune`` (layers
outside the region leave the region-tuned and the all-layer model, with and without healing), ``questions`` (the suite
reform_eval/offline put to the untuned, all-tuned, region-tuned, pruned and healed model of the first seed) and
``report`` (tables with paired bootstrap intervals, and plots). Each can be broken off and started again. Needs the four
idx files and the emoji font (Debian: apt-get install dataset-fashion-mnist fonts-noto-color-emoji) and the demo extra.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.tuning_step import StepTimes
from benchmarks.visual_region_report import DEPTH, UNTUNED, read_record, write_report
from callbacks.throughput import peak_memory_mib
from lightning_modules.loses_layers import SITE
from sparsight.command.cli import main as sparsight
from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text
from sparsight.evaluation.compare import compare_reports
from sparsight.lvlm.model.assemble import assemble
from sparsight.lvlm.surgery.selection import Uniform

CONFIG = "experiment/visual_region_study"
ALIGN = "experiment/visual_region_align"
COUNT = 8  # of 30 layers
STEPS_EACH = 280  # as in the config
SUITE = "reform_eval/offline"
STEPS = ("align", "score", "train", "prune", "questions", "report")
REMOVED = (0, 1, 2, 3, 4, 5, 6)  # layers
HEALING = ("without", "with")
HEALING_STEPS = 60
ITEMS_OF = 0.5  # share of the items' batches that models without layers answer
DATA_SEED = 100  # of healing, and of which batches these are: one for all runs, which pairs them
ASKED_WITHOUT = 4  # layers that the pruned models of the suite lack
SCORES_FILE = "scores_val.json"  # of an evaluation's items
SCORES = ["sparsight.lvlm.scores.MultimodalBlockInfluence", "sparsight.lvlm.scores.ImageAttention"]


def chosen(name: str, **options: object) -> list[str]:
    """Command-line options that choose layers."""
    return [
        "--model.layers",
        json.dumps({"class_path": f"sparsight.lvlm.surgery.selection.{name}", "init_args": options}),
    ]


def stage(parts: Sequence[str], *, steps: int, lr: float, projector_lr: float) -> list[str]:
    """Command-line options of the only stage; both rates are given, or the config's other one would stay."""
    return ["--model.stages", json.dumps([{"train": parts, "steps": steps, "lr": lr, "projector_lr": projector_lr}])]


def arm_options(arm: str, root: Path, seed: int) -> list[str]:
    """What an arm trains."""
    if arm == "projector":
        return stage(["projector"], steps=STEPS_EACH, lr=5e-4, projector_lr=5e-4)
    if arm == "all_half_rate":
        return chosen("All") + stage(["layers", "projector"], steps=STEPS_EACH, lr=1e-4, projector_lr=5e-4)
    scores = str(root / "scores" / "scores.json")
    return {
        "all": chosen("All"),
        "uniform": chosen("Uniform", count=COUNT),
        "bottom": chosen("Consecutive", place="bottom", count=COUNT),
        "top": chosen("Consecutive", place="top", count=COUNT),
        "random": chosen("Random", count=COUNT, seed=seed),
        "by_block_influence": chosen("TopK", scores=scores, score="multimodal_block_influence", count=COUNT),
        "by_image_attention": chosen("TopK", scores=scores, score="image_attention_text", count=COUNT),
    }[arm]


ARMS = (
    UNTUNED,
    "all",
    "uniform",
    "all_half_rate",
    "projector",
    "bottom",
    "top",
    "random",
    "by_block_influence",
    "by_image_attention",
)
BY_SCORE = ("by_block_influence", "by_image_attention")


def model_options(folder: Path) -> list[str]:
    """Options that start from a model folder."""
    return ["--model.base", str(folder), "--data.model", str(folder)]


def align(root: Path, start: Path) -> None:
    """Assemble the model, ``base``; unless all start from that, train its projector, which makes it ``aligned``."""
    if not (root / "base").is_dir():
        assemble(root / "base")
    if start.is_dir():
        return
    options = ["--config", CONFIG, "--config", ALIGN, *model_options(root / "base")]
    sparsight(["fit", *options, "--trainer.default_root_dir", str(root / "align"), *resumed(root / "align")])
    sparsight(["export", *options, *resumed(root / "align"), "--weights=raw", "--output", str(start)])


def score(root: Path, start: Path, batches: int) -> None:
    """Scores of the layers that every arm starts from."""
    if (root / "scores" / "scores.json").is_file():
        return
    scores = [f"--scores+={name}" for name in SCORES]
    arguments = ["analyze", "--config", CONFIG, *model_options(start), *scores]
    sparsight([*arguments, f"--batches={batches}", "--output", str(root / "scores")])


def judge_untuned(root: Path, start: Path) -> None:
    """What every arm starts from, on the same items; nothing is trained, so there are no seeds."""
    folder = root / UNTUNED / "seed0"
    if (folder / "record.json").is_file():
        return
    arguments = ["validate", "--config", CONFIG, *model_options(start), *arm_options("projector", root, 0)]
    cli = sparsight([*arguments, "--trainer.default_root_dir", str(folder)])
    save_record(folder, cli, arm=UNTUNED, seed=None, step_seconds=None)


def train(arm: str, root: Path, start: Path, *, seed: int) -> None:
    """Tune one arm with one seed; ``record.json`` appears when it is done."""
    folder = root / arm / f"seed{seed}"
    if (folder / "record.json").is_file():
        return
    arguments = ["--config", CONFIG, *model_options(start), *arm_options(arm, root, seed)]
    arguments += ["--seed_everything", str(seed), f"--data.seed={seed}", "--trainer.default_root_dir", str(folder)]
    clock = {"class_path": "benchmarks.tuning_step.StepTimes"}  # of the processor: lanes beside it do not count
    cli = fitted_and_judged([*arguments, "--trainer.callbacks+", json.dumps(clock)], folder)
    seconds = next(callback for callback in cli.trainer.callbacks if isinstance(callback, StepTimes)).seconds()
    save_record(folder, cli, arm=arm, seed=seed, step_seconds=statistics.median(seconds) if seconds else None)


def fitted_and_judged(arguments: list[str], folder: Path) -> Any:
    """Train from the run's last checkpoint on; Lightning judges at the end, but not when all steps were done before."""
    cli = sparsight(["fit", *arguments, *resumed(folder)])
    if not Path(cli.trainer.log_dir, SCORES_FILE).is_file():
        cli = sparsight(["validate", *arguments, *resumed(folder)])
    return cli


def save_record(folder: Path, cli: Any, **facts: Any) -> None:
    """Keep what a run measured, and its items."""
    scores = json.loads(Path(cli.trainer.log_dir, SCORES_FILE).read_text(encoding="utf-8"))
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    record = facts | {
        "layers": cli.model.layers if any("layers" in stage.train for stage in cli.model.clock.stages) else [],
        "removed": cli.model.retired.indices,
        "steps": cli.model.clock.total,
        "threads": torch.get_num_threads(),
        "precision": str(cli.trainer.precision),
        "peak_memory_mib": peak_memory_mib() if cli.subcommand == "fit" else None,  # judging takes less
        "metrics": metrics,
        "scores": scores,
    }
    write_text(folder / "record.json", json_text(record))


def resumed(folder: Path) -> list[str]:
    """The option that goes on from a run's last checkpoint, if there is one."""
    checkpoints = sorted(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    return ["--ckpt_path", str(checkpoints[-1])] if checkpoints else []


def export(arm: str, root: Path, start: Path, *, seed: int) -> Path:
    """The tuned model of an arm as a folder."""
    folder, run = root / arm / f"seed{seed}" / "export", root / arm / f"seed{seed}"
    if not folder.is_dir():
        arguments = ["export", "--config", CONFIG, *model_options(start), *arm_options(arm, root, seed)]
        sparsight([*arguments, *resumed(run), "--weights=raw", "--output", str(folder)])
    return folder


def prune(arm: str, root: Path, start: Path, *, seed: int, removed: int, heal: bool) -> None:
    """Remove layers outside the uniform region, one by one by angular distance, and judge the rest.

    Healing trains projector and region for a few steps after the layers have left. A share of the items answers, the
    same of all runs.
    """
    run = root / arm / f"seed{seed}"
    folder = run / f"without{removed}{'_healed' if heal else ''}"
    if (folder / "record.json").is_file():
        return
    score = {"class_path": "sparsight.lvlm.scores.AngularDistance", "init_args": {"tokens": "all"}}
    pruning = {"score": score, "protect_tuned": False, "protected": Uniform(count=COUNT).select(DEPTH), "batches": 8}
    schedule = {"shape": "one_shot", "begin": 0, "amount": removed, "rescore": True}
    schedule["order"] = removal_order(run, removed)
    steps = HEALING_STEPS if heal else 1  # without healing nothing is learned in the one step
    arguments = ["--config", CONFIG, *model_options(export(arm, root, start, seed=seed))]
    arguments += [*chosen("Uniform", count=COUNT), f"--trainer.val_check_interval={steps}"]
    rate = 1e-4 if heal else 0.0
    arguments += stage(["layers", "projector"], steps=steps, lr=rate, projector_lr=rate)
    arguments += ["--model.prune", json.dumps(pruning), "--trainer.default_root_dir", str(folder)]
    arguments += ["--seed_everything", str(seed), f"--data.seed={DATA_SEED}", f"--trainer.limit_val_batches={ITEMS_OF}"]
    callback = {"class_path": "callbacks.PruningSchedule", "init_args": schedule}
    arguments += ["--trainer.callbacks+", json.dumps(callback)] if removed else []
    cli = fitted_and_judged(arguments, folder)
    order = [f"{SITE}{layer}" for removal in cli.model.removals for layer in removal["layers"]]
    save_record(folder, cli, arm=arm, seed=seed, healed=heal, order=order)


def removal_order(run: Path, removed: int) -> str | list[str]:
    """In which order layers left a run that lost as many or more; if none did, they are scored, with equal outcome."""
    records = [run / f"without{count}" / "record.json" for count in sorted(REMOVED) if count >= removed]
    done = [path for path in records if path.is_file()]
    return read_record(done[0])["order"] if done else "score"


def ask(root: Path, start: Path, *, seed: int) -> None:
    """Put the suite to five models, and compare them with the untuned one."""
    tuned = root / "uniform" / f"seed{seed}"
    models = {
        "untuned": start,
        "all layers": export("all", root, start, seed=seed),
        "region": export("uniform", root, start, seed=seed),
        f"region, without {ASKED_WITHOUT}": export_run(tuned / f"without{ASKED_WITHOUT}"),
        f"region, without {ASKED_WITHOUT}, healed": export_run(tuned / f"without{ASKED_WITHOUT}_healed"),
    }
    reports = [root / "questions" / name.replace(", ", "_").replace(" ", "_") for name in models]
    for model, report in zip(models.values(), reports, strict=True):
        plain = ["--model", "LVLMEvaluation", "--model.base", str(model), "--trainer.precision=auto"]
        folder = ["--trainer.callbacks.init_args.folder", str(report), "--trainer.logger=false"]
        sparsight(["test", "--config", SUITE, *plain, *folder])
    print(compare_reports(reports, output=root / "questions" / "compared", names=list(models)))


def export_run(folder: Path) -> Path:
    """The model of a finished run as a folder, by the config that the run has left."""
    if not (folder / "export").is_dir():
        config = max(folder.rglob("config.yaml"), key=lambda path: path.stat().st_mtime)
        arguments = ["export", "--config", str(config), *resumed(folder), "--weights=raw"]
        sparsight([*arguments, "--output", str(folder / "export")])
    return folder / "export"


def main() -> None:
    """Run the chosen steps for the chosen arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps; all if not given")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--removed", type=int, nargs="+", default=list(REMOVED), help="numbers of layers to remove")
    parser.add_argument("--healing", nargs="+", choices=HEALING, default=HEALING, help="of models that lost layers")
    parser.add_argument("--batches", type=int, default=16, help="calibration batches of `score`")
    parser.add_argument(
        "--start",
        choices=("aligned", "base"),
        default="aligned",
        help="what every arm starts from: the model whose projector was trained, or the assembled one, whose was not",
    )
    parser.add_argument("--root", type=Path, default=Path("runs/visual_region_study"), help="one for every --start")
    parser.add_argument("--output", type=Path, help="folder of the report; `report` in the root if not given")
    arguments = parser.parse_args()
    if arguments.start == "base" and (arguments.root / "aligned").is_dir():
        parser.error(f"{arguments.root} holds the study of the aligned model; give another --root for --start base")
    run(arguments, arguments.root, arguments.only)


def alone(work: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Do something in a process of its own, whose peak memory is then that of one run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(work, *arguments, **options).result()


def run(arguments: argparse.Namespace, root: Path, only: Sequence[str]) -> None:
    """The steps in their order; seeds come one after the other, so that a broken off study has whole seeds."""
    root.mkdir(parents=True, exist_ok=True)
    start = root / arguments.start
    if "align" in only:
        alone(align, root, start)
    if "score" in only and set(arguments.arms) & set(BY_SCORE):
        alone(score, root, start, arguments.batches)
    if "train" in only and UNTUNED in arguments.arms:
        alone(judge_untuned, root, start)
    for seed in arguments.seeds:
        for arm in [arm for arm in arguments.arms if arm != UNTUNED] if "train" in only else ():
            alone(train, arm, root, start, seed=seed)
        for arm in ("uniform", "all") if "prune" in only else ():
            for removed in sorted(arguments.removed, reverse=True) if arm in arguments.arms else ():
                for healing in arguments.healing if removed else ("with",):  # tuning has judged the whole model
                    alone(prune, arm, root, start, seed=seed, removed=removed, heal=healing == "with")
    if "questions" in only:
        alone(ask, root, start, seed=arguments.seeds[0])
    if "report" in only:
        write_report(root, arguments.output or root / "report", arms=ARMS, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
