"""Tokens a second and peak memory of ways to tune, each beside what one would write by hand with the same freezing.

By hand: the same model with the same weights frozen, padded batches, the model's own loss, AdamW, one loop. It and the
run through Sparsight take turns on the same conversations, loading included. Processor time counts, so that other work
on the machine disturbs little; on a GPU it is the wall's.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from datamodules import Batching, InstructionDataModule
from lightning_modules import SparseLayerTuning
from sparsight.common.measure.latency import synchronize
from sparsight.common.measure.memory import held_bytes, peak_bytes
from sparsight.lvlm.model.load import ModelLoading
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.surgery.selection import All, Uniform
from sparsight.lvlm.train.compute import TuningCompute
from sparsight.lvlm.train.fused_loss import PACKAGES
from sparsight.lvlm.train.stages import TuningStage

Data = Callable[..., InstructionDataModule]
"""Makes the data anew, with further options."""

WARM_UP = 2  # steps that announce and allocate
PACKED = 1024  # tokens of a row
RANK = 16


def recipes(device: torch.device) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Options of the module and of the data by a recipe's name; those that the machine can run."""
    quarter: dict[str, Any] = {"layers": Uniform(ratio=0.25)}
    adapters = quarter | {"lora": LoRA(rank=RANK, alpha=2 * RANK)}
    packed = {"batching": Batching(packing=True, max_length=PACKED)}
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "all layers": ({"layers": All()}, {}),
        "25 % uniform": (quarter, {}),
        "25 % uniform, packed": (quarter, packed),
        "25 % uniform, recomputed": (quarter | {"compute": TuningCompute(gradient_checkpointing=True)}, {}),
        "25 % by adapters": (adapters, {}),
        "25 % by adapters, packed": (adapters, packed),
    }
    if find_spec("torchao") is not None:
        found["25 % by adapters, the rest in 8 bits"] = (adapters | {"loading": ModelLoading(quantization="int8")}, {})
    if device.type == "cuda":
        for kind, (module, _) in PACKAGES.items():
            if find_spec(module) is not None:
                found[f"25 % uniform, {kind}"] = (quarter | {"compute": TuningCompute(fused_loss=kind)}, {})
    return found


def compare_recipes(
    base: str, data: Data, *, steps: int, rounds: int, device: torch.device, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """A row for each recipe.

    Args:
        base: Model folder.
        data: Makes the data.
        steps: Timed steps of a run.
        rounds: Runs of each of the two, in turn.
        device: Where.
        names: Recipes; all if not given.
    """
    clock = Clock(device)
    tokens = tokens_of(data(), WARM_UP + steps)
    rows = []
    for name, (options, of_data) in recipes(device).items():
        if names is None or name in names:
            frozen_alike = {key: value for key, value in options.items() if key in ("layers", "lora")}
            ways = {
                "sparsight": partial(_run, tuned, base, options, partial(data, **of_data), clock),
                "by hand": partial(_run, by_hand, base, frozen_alike, data, clock),
            }
            speeds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, run in ways.items():
                    seconds = run(WARM_UP + steps + 1).seconds
                    speeds[way] += [n / s for n, s in zip(tokens, seconds, strict=True)][WARM_UP:]
            medians = {way: statistics.median(found) for way, found in speeds.items()}
            rows.append(
                {
                    "recipe": name,
                    **{f"tokens/s, {way}": median for way, median in medians.items()},
                    "ratio": medians["sparsight"] / medians["by hand"],
                    **{f"peak bytes, {way}": run(WARM_UP, measured=True).peak for way, run in ways.items()},
                }
            )
            print(", ".join(f"{key} {text}" for key, text in shown(rows[-1]).items()), flush=True)
    return rows


@dataclass
class Ran:
    """What a run took: seconds of its steps but the last, and the bytes that were held at most, weights included."""

    seconds: list[float]
    peak: int


def _run(
    way: Callable[..., list[float]],
    base: str,
    options: Mapping[str, Any],
    data: Data,
    clock: Clock,
    count: int,
    measured: bool = False,
) -> Ran:
    gc.collect()  # a Trainer and its module hold each other
    module = SparseLayerTuning(base, [TuningStage(steps=10_000, lr=1e-5)], **options)
    found: list[float] = []

    def call() -> None:
        found.extend(way(module, data(), count, clock))

    if not measured:
        call()
        return Ran(found, 0)
    weights = held_bytes(module) if clock.device.type == "cpu" else 0  # a GPU gets them during the call
    return Ran(found, weights + peak_bytes(call, clock.device))


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for a table, memory in GiB."""
    texts = {}
    for name, value in row.items():
        if name.startswith("peak bytes"):
            texts[name.replace("bytes", "GiB")] = f"{value / 2**30:.2f}"
        else:
            texts[name] = value if isinstance(value, str) else f"{value:.2f}" if name == "ratio" else f"{value:.0f}"
    return texts


class Clock:
    """Seconds: of the processor, or of the wall once a GPU has done what it was given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Since some time, as differences count alone."""
        if self.device.type == "cpu":
            return time.process_time()
        synchronize(self.device)
        return time.perf_counter()


class Beginnings(Callback):
    """When each batch begins."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.times = clock, list[float]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.times.append(self.clock.now())


def tuned(module: SparseLayerTuning, data: InstructionDataModule, count: int, clock: Clock) -> list[float]:
    """Seconds of each of these steps but the last, through Sparsight."""
    begins = Beginnings(clock)
    on_gpu = clock.device.type == "cuda"
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    options |= {"accelerator": "gpu" if on_gpu else "cpu", "precision": "bf16-mixed" if on_gpu else "32-true"}
    Trainer(max_steps=count, callbacks=[begins], **options).fit(module, datamodule=data)
    return [b - a for a, b in itertools.pairwise(begins.times)]


def by_hand(module: SparseLayerTuning, data: InstructionDataModule, count: int, clock: Clock) -> list[float]:
    """Seconds of each of these steps but the last, in a loop that knows the model alone."""
    model, device = module.model.to(clock.device), clock.device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    times = []
    for batch in itertools.islice(batches_of(data), count):
        times.append(clock.now())
        inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**inputs, labels=batch["labels"].to(device), use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [b - a for a, b in itertools.pairwise(times)]


def batches_of(data: InstructionDataModule) -> Iterator[Any]:
    """Training batches."""
    data.setup("fit")
    yield from data.train_dataloader()


def tokens_of(data: InstructionDataModule, count: int) -> list[int]:
    """Tokens, padding left out, of each of the first batches; packing changes neither them nor their order."""
    return [int(batch["inputs"]["attention_mask"].sum()) for batch in itertools.islice(batches_of(data), count)]
