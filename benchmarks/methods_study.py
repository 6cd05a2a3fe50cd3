"""What published methods keep of a small image-text model's answers, and what they save: 256 image tokens on a CPU.

    python -m benchmarks.methods_study                             everything; rows that are there are kept
    python -m benchmarks.methods_study --only judge --minutes 30   begins no arm that would not be done by then
    python -m benchmarks.methods_study --only time --arms "FastV 25%" "VAR"
    python -m benchmarks.methods_report                            tables of whatever is there

Steps: ``tune`` (the assembled model with pictures of 512 pixels learns about sheets, without methods; its adapters are
kept beside the rows), ``calibrate`` (what FitPrune and VAR need to know), ``judge`` (every arm answers the same items
by likelihood) and ``time`` (reading a prompt under the arm, in turn with the untouched model, once the arm keeps its
promises). Rows are written at once. Needs the idx files and the emoji font (Debian: apt-get install
dataset-fashion-mnist fonts-noto-color-emoji) and the demo extra.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from benchmarks.methods_arms import SHARES, Arm, arms, computed
from benchmarks.methods_data import Sheets, Task
from benchmarks.methods_start import tuned_from, untuned
from benchmarks.region_rows import Budget, Rows, outcomes
from datamodules import InstructionDataModule
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import cpu_name
from sparsight.common.measure.latency import Timing, time_in_turn
from sparsight.common.measure.memory import peak_bytes
from sparsight.common.tables import json_text
from sparsight.common.training.precision import precision_that_pays
from sparsight.evaluation.questions.answer import answer_questions
from sparsight.evaluation.questions.task_scores import Item, TaskScores
from sparsight.lvlm.methods.calibration.searches import FitPruneShares
from sparsight.lvlm.methods.conformance import BY_TOKEN
from sparsight.lvlm.methods.cost.benchmark import conforms
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.tower import Parts, find_parts
from sparsight.lvlm.model.vision_cache import VisionCache

FOLDER = Path(__file__).parent / "methods_rows"  # committed
STEPS = ("tune", "calibrate", "judge", "time")
UNTUNED = "untuned"
TASKS: tuple[Task, ...] = ("clothes", "emoji", "place")
"""Those that tuning has taught, by the untouched model's answers to other items: see docs/methods_study.md."""
ITEMS, BATCH = 108, 8
SEED = 2  # of the items
SEEN = 16  # training sheets that calibrations look at
SINK, TIMES = 20.0, 5  # how many times the root mean square a sink's channel reaches; runs of each in turn


class Model:
    """The tuned model at work: in the precision that pays, with a tower that computes each sheet once.

    Args:
        folder: Of the model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.parts = find_parts(self.model)
        self.cache = VisionCache(self.model, self.parts, gib=1.0)
        self.precision = precision_that_pays("cpu")[0]

    def computing(self) -> AbstractContextManager[Any]:
        """Without gradients, in that precision."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision != "32-true")

    def under(self, recipe: Recipe | None) -> AbstractContextManager[None]:
        """With methods, or without."""
        return nullcontext() if recipe is None else recipe.on(self.model)

    def batches(self, count: int, *, size: int = BATCH, train: bool = False) -> Iterator[dict[str, Any]]:
        """Batches of items, or of training's sheets as items."""
        data = InstructionDataModule(str(self.folder), val=Sheets(count, SEED, train, TASKS), batch_size=size)
        data.setup("validate")
        self.tokenizer = data.load_processor().tokenizer
        loader: Any = data.val_dataloader()
        yield from loader

    @torch.no_grad()
    def answers(self, recipe: Recipe | None) -> TaskScores:
        """What is answered by likelihood."""
        scores = TaskScores()
        for batch in self.batches(ITEMS):
            with self.computing(), self.cache.serving(batch["image_keys"]), self.under(recipe):
                found = answer_questions(self.model, self.tokenizer, batch, methods=["likelihood"], new_tokens=0)
            scores.add(map(Item.of, found))
        return scores


def calibrate(model: Model, file: Path) -> None:
    """FitPrune's shares for each share of tokens, and the channels in which this model's sinks are large."""
    batches = [(batch["image_keys"], batch["inputs"]) for batch in model.batches(SEEN, size=1, train=True)]
    found: dict[str, Any] = {"sinks": sink_channels(model, batches)}
    search = FitPruneShares()
    with model.computing():
        search.artefact(model.model, [inputs for _, inputs in batches])
        for share in SHARES:
            search.ratio = computed(share)
            artefact = {"kind": "FitPruneShares", "values": search.values()}
            found[f"FitPrune {share:.0%}"] = artefact | {"made_with": {"samples": SEEN}}
    write_text(file, json_text(found))


@torch.no_grad()
def sink_channels(model: Model, batches: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[int]:
    """Channels that reach ``SINK`` times a state's root mean square in a middle layer of most prompts."""
    votes = torch.zeros(model.model.config.get_text_config().hidden_size)
    for keys, inputs in batches:
        with model.computing(), model.cache.serving(keys):
            states = model.model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
        state = states[len(states) // 2][0].float()
        votes += ((state / state.pow(2).mean(-1, keepdim=True).sqrt()).abs() > SINK).any(0)
    return [int(channel) for channel in (votes > len(batches) / 2).nonzero()[:, 0]]


def judge(model: Model, arm: str, recipe: Recipe | None, **facts: Any) -> dict[str, Any]:
    """What an arm answers."""
    scores = model.answers(recipe)
    loss = round(scores.loss(), 4)
    return {"arm": arm, **facts, "right": outcomes(scores), "loss": loss, "precision": model.precision}


def timed(model: Model, recipe: Recipe | None) -> dict[str, Any]:
    """Processor time, memory and operations of reading a prompt behind the tower, beside the untouched model's."""
    (batch,) = model.batches(1, size=1)
    inputs, keys = batch["inputs"], batch["image_keys"]

    @torch.no_grad()
    def read(recipe: Recipe | None) -> None:
        with model.computing(), model.cache.serving(keys), model.under(recipe):
            model.model(**inputs, use_cache=True, logits_to_keep=1)

    read(None)  # the tower has answered
    calls = {"plain": partial(read, None)} | ({} if recipe is None else {"arm": partial(read, recipe)})
    times = time_in_turn(calls, device=torch.device("cpu"), runs=TIMES, max_seconds=60, processor=True)
    found: dict[str, Any] = {"tokens": int(inputs["input_ids"].shape[1])}
    for name, call in calls.items():
        timing = times[name]
        found[f"seconds_{name}"] = round(timing.median if isinstance(timing, Timing) else timing.seconds, 4)
        found |= {f"peak_bytes_{name}": peak_bytes(call, torch.device("cpu")), f"flops_{name}": _flops(call)}
    return found | {"image_tokens": image_tokens(model.parts, calls.get("arm", calls["plain"]), inputs)}


def image_tokens(parts: Parts, call: Callable[[], Any], inputs: Mapping[str, Any]) -> float:
    """Mean number of image tokens in a layer, of one sample; passes that go before count, too."""
    text = int((inputs["input_ids"] != parts.image_token_id).sum())
    seen: list[int] = []
    hooks = [
        layer.get_submodule("input_layernorm").register_forward_pre_hook(
            lambda _, given: seen.append(given[0].shape[1] - text)
        )
        for layer in parts.layers
    ]
    call()
    for hook in hooks:
        hook.remove()
    return round(sum(seen) / len(parts.layers), 1)


def prompt_of(model: Model) -> Callable[[int], dict[str, Any]]:
    """Makes a prompt with one image, for the promises."""
    (batch,) = model.batches(1, size=1)
    inputs = {name: value for name, value in batch["inputs"].items() if name in (*BY_TOKEN, "pixel_values")}
    return lambda images: inputs


def _flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def weights_of(file: Path) -> str:
    """By which rows of other weights are known."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def run(rows: Rows, step: str, arm: Arm, model: Model, facts: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """One row."""
    try:
        methods = arm.make(found)
    except KeyError as missing:
        raise SystemExit(f"{arm.key} needs the calibration {missing}: run --only calibrate first") from missing
    recipe = Recipe(methods) if methods else None
    begin = time.process_time()
    told = {"share": arm.share, "methods": [] if recipe is None else recipe.record(), **facts}
    if step == "judge":
        row = judge(model, arm.name, recipe, **told)
    else:
        worst = None if recipe is None else conforms(model.model, recipe, prompt_of(model))
        row = {"arm": arm.name, **told, "conformance": worst, **timed(model, recipe)}
    row = {name: value for name, value in row.items() if name != "methods" or step == "judge"}
    rows.add(step, arm.key, **row, processor_seconds=round(time.process_time() - begin, 1))
    print(step, arm.key, row.get("right", row.get("seconds_arm")), flush=True)


def main() -> None:
    """Run the chosen steps for the chosen arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps; all if not given")
    known = {arm.key: arm for arm in arms()}
    parser.add_argument("--arms", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--minutes", type=float, help="begin nothing that would not be done by then")
    parser.add_argument("--root", type=Path, default=Path("runs/methods_study"), help="of models")
    parser.add_argument("--rows", type=Path, default=FOLDER, help="of rows, adapters and calibrations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, budget, adapters = Rows(options.rows), Budget(options.minutes), options.rows / "adapters.safetensors"
    if "tune" not in options.only and not adapters.is_file():
        parser.error(f"{adapters} is not there: begin with --only tune")
    folder = tuned_from(options.root, adapters)
    calibrated = options.rows / "calibrations.json"
    facts = {"weights": weights_of(adapters), "cpu": cpu_name()}
    model = Model(folder)
    if "calibrate" in options.only and not calibrated.is_file():
        calibrate(model, calibrated)
    found = json.loads(calibrated.read_text(encoding="utf-8")) if calibrated.is_file() else {}
    for key in options.arms:
        for step in ("judge", "time"):
            if step not in options.only or key in rows.read(step):
                continue
            if not budget.allows(step, guess=300):
                raise SystemExit(f"{key} would not be done in time: run again to go on")
            begin = time.monotonic()
            run(rows, step, known[key], model, facts, found)
            budget.note(step, time.monotonic() - begin)
    if "judge" in options.only and UNTUNED not in rows.read("judge"):
        start = Model(untuned(options.root))
        rows.add("judge", UNTUNED, **judge(start, UNTUNED, None, share=None, methods=[], **facts))


if __name__ == "__main__":
    main()
