"""Time of a training step by what is tuned, against the prediction, and against loops without Lightning.

    python -m benchmarks.tuning_step --base runs/demo_lvlm --output runs/tuning_step

Three parts: recipes (tokens a second and peak memory of each, beside a loop by hand; see tuning_recipes.py), cases
(what is tuned, against the prediction) and the overhead of Lightning. On a GPU (``--device cuda``) recipes alone are
measured.

The candidates take turns on the same batches, and processor time of one thread is counted, so that other work on the
machine disturbs little. Needs the offline model (python -m sparsight.lvlm.model.assemble --output runs/demo_lvlm).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.tuning_recipes import Data, batches_of, compare_recipes, shown
from datamodules import IdxRecords, InstructionDataModule, LabelledQuestions
from lightning_modules import SparseLayerTuning
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text, markdown_table
from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.surgery.selection import All, Consecutive, LayerSelection, Uniform
from sparsight.lvlm.train.cost import forward_flops, step_cost
from sparsight.lvlm.train.stages import TuningStage

CLASSES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
CASES: dict[str, tuple[LayerSelection, list[Any]]] = {
    "all layers, projector": (All(), ["layers", "projector"]),
    "25 % uniform, projector": (Uniform(ratio=0.25), ["layers", "projector"]),
    "25 % top, projector": (Consecutive(place="top", ratio=0.25), ["layers", "projector"]),
    "projector": (All(), ["projector"]),
    "all layers": (All(), ["layers"]),
    "25 % uniform": (Uniform(ratio=0.25, rule="stride_end"), ["layers"]),
    "25 % top": (Consecutive(place="top", ratio=0.25), ["layers"]),
}
AGAINST = {
    "25 % uniform, projector": "all layers, projector",
    "25 % top, projector": "all layers, projector",
    "projector": "all layers, projector",
    "25 % uniform": "all layers",
    "25 % top": "all layers",
}
LOOP = "25 % uniform, projector"
PARTS = ("recipes", "cases", "overhead")


def module_of(base: str, case: str) -> SparseLayerTuning:
    """The module of a case."""
    layers, train = CASES[case]
    return SparseLayerTuning(base, [TuningStage(steps=10_000, train=train, lr=1e-5)], layers=layers)


def datamodule_of(base: str, data: Path, batch_size: int, **options: Any) -> InstructionDataModule:
    """Questions of one image each about Fashion-MNIST."""
    files = (data / "train-images-idx3-ubyte.gz", data / "train-labels-idx1-ubyte.gz")
    questions = LabelledQuestions(IdxRecords(*files, classes=CLASSES), tasks=["naming", "yes_no", "choice"])
    return InstructionDataModule(base, questions, batch_size=batch_size, limit=2000, **options)


def plain_step(module: SparseLayerTuning, optimizer: torch.optim.Optimizer) -> Callable[[Any], None]:
    """A step as one would write it by hand."""

    def step(batch: Any) -> None:
        losses, _ = answer_losses(module.model, batch["inputs"], batch["labels"])
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Callable[[Any], None], batch: Any) -> float:
    """Seconds of processor time."""
    begin = time.process_time()
    step(batch)
    return time.process_time() - begin


def compare_cases(base: str, batches: Sequence[Any], rounds: int) -> list[dict[str, Any]]:
    """Measured and predicted ratios of every case to the one that trains all layers."""
    modules = {case: module_of(base, case).train() for case in CASES}
    steps = {
        case: plain_step(module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5))
        for case, module in modules.items()
    }
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for number, batch in zip(range(rounds + 1), itertools.cycle(batches), strict=False):
        for case, step in steps.items():
            spent = timed(step, batch)
            if number:  # the first one allocates
                seconds[case].append(spent)
    one = modules[LOOP]
    batch = batches[0]
    flops = forward_flops(one.model, one.parts, lambda: answer_losses(one.model, batch["inputs"], batch["labels"]))
    costs = {
        case: step_cost(flops, layers=modules[case].tuned_layers, projector="projector" in CASES[case][1]).total
        for case in CASES
    }
    return [
        {
            "case": case,
            "against": other,
            "predicted": costs[case] / costs[other],
            "measured": statistics.median(a / b for a, b in zip(seconds[case], seconds[other], strict=True)),
        }
        for case, other in AGAINST.items()
    ]


class StepTimes(Callback):
    """Processor time from one batch's start to the next one's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.times.append(time.process_time())

    def seconds(self) -> list[float]:
        """Of every step but the first two, which announce and allocate."""
        return [b - a for a, b in itertools.pairwise(self.times)][2:]


def plain_loop(base: str, datamodule: InstructionDataModule, steps: int) -> list[float]:
    """Seconds of the steps of a loop by hand, loading included."""
    module = module_of(base, LOOP).train()
    step = plain_step(module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5))
    times = []
    for batch in itertools.islice(datamodule.train_dataloader(), steps):
        times.append(time.process_time())
        step(batch)
    return [b - a for a, b in itertools.pairwise(times)][2:]


def lightning_loop(base: str, datamodule: InstructionDataModule, steps: int) -> list[float]:
    """Processor time of each step through the Trainer, with its logging."""
    clock = StepTimes()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    Trainer(max_steps=steps, callbacks=[clock], **options).fit(module_of(base, LOOP), datamodule=datamodule)
    return clock.seconds()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="runs/demo_lvlm")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="idx files")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each case")
    parser.add_argument("--loops", type=int, default=2, help="runs of each loop, in turn")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run of a loop")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--recipes", nargs="+", help="by their names; all if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/tuning_step"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device, base = torch.device(arguments.device), arguments.base
    data = partial(datamodule_of, base, arguments.data, arguments.batch_size)
    facts: dict[str, Any] = {"environment": environment(device)}
    parts = [part for part in arguments.parts if device.type == "cpu" or part == "recipes"]
    if "recipes" in parts:
        options: dict[str, Any] = {"steps": arguments.steps, "rounds": arguments.loops, "device": device}
        facts["recipes"] = compare_recipes(base, data, names=arguments.recipes, **options)
        print(markdown_table([shown(row) for row in facts["recipes"]]))
    if "cases" in parts:
        batches = list(itertools.islice(batches_of(data()), 4))
        facts["batches"] = [tuple(batch["labels"].shape) for batch in batches]
        facts["cases"] = compare_cases(base, batches, arguments.rounds)
        rounded = [{k: v if isinstance(v, str) else f"{v:.3f}" for k, v in case.items()} for case in facts["cases"]]
        print("", markdown_table(rounded), sep="\n")
    if "overhead" in parts:
        facts["overhead"] = overhead(base, data, loops=arguments.loops, steps=arguments.steps)
        print(f"\nLightning's steps against a loop by hand: {facts['overhead']:.3f} (medians)")
    write_text(arguments.output / "tuning_step.json", json_text(facts))


def overhead(base: str, data: Data, *, loops: int, steps: int) -> float:
    """Steps through Lightning over those of a loop by hand that calls what Lightning's do."""
    found: dict[str, list[float]] = {"plain": [], "lightning": []}
    for _ in range(loops):
        for name, loop in (("plain", plain_loop), ("lightning", lightning_loop)):
            fresh = data()
            fresh.setup("fit")
            found[name] += loop(base, fresh, steps)
    return statistics.median(found["lightning"]) / statistics.median(found["plain"])


if __name__ == "__main__":
    main()
