"""Arms of the region study: what each tunes, with which learning rates, as options of the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 280
COUNT = 8  # of 30 layers
PROJECTOR_RATE = 5e-4  # of arms that tune layers; the arm of the projector alone has its own
FULL_RATES = (5e-5, 1.5e-4, 4.5e-4)
HIGH_RATES = (1.5e-4, 4.5e-4, 1.35e-3)  # of adapters and of the projector, which start from nothing or little
LORA = {"rank": 32, "alpha": 64, "dropout": 0.0}


@dataclass(frozen=True)
class Arm:
    """What an arm of the study trains.

    Args:
        rule: Name of the selection in ``sparsight.lvlm.surgery.selection``.
        options: Of it.
        lora: Tune adapters in place of weights.
        train: Parts.
        rates: Learning rates of the layers, or of the projector where it is alone.
        scores: Chooses by scores of the layers, which are measured before.
        drawn: Draws other layers with every seed.
        loses: Loses layers afterwards.
    """

    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    train: Sequence[str] = ("layers", "projector")
    rates: tuple[float, ...] = FULL_RATES
    scores: bool = False
    drawn: bool = False
    loses: bool = False


UNTUNED = "untuned"  # what all arms start from; it has neither a rate nor seeds
ARMS = {
    "all": Arm("All", loses=True),
    "uniform": Arm("Uniform", {"count": COUNT}, loses=True),
    "lora_all": Arm("All", lora=True, rates=HIGH_RATES, loses=True),
    "lora_uniform": Arm("Uniform", {"count": COUNT}, lora=True, rates=HIGH_RATES, loses=True),
    "bottom": Arm("Consecutive", {"place": "bottom", "count": COUNT}),
    "top": Arm("Consecutive", {"place": "top", "count": COUNT}),
    "random": Arm("Random", {"count": COUNT}, drawn=True),
    "by_block_influence": Arm("TopK", {"score": "multimodal_block_influence", "count": COUNT}, scores=True),
    "by_image_attention": Arm("TopK", {"score": "image_attention_text", "count": COUNT}, scores=True),
    "projector": Arm("Uniform", {"count": COUNT}, train=("projector",), rates=HIGH_RATES),
}


def rates_of(arm: str, given: Sequence[float] | None = None) -> tuple[float, ...]:
    """Learning rates that an arm is tried with: those given, or its own."""
    return tuple(given) if given else ARMS[arm].rates


def stage(train: Sequence[str], *, steps: int, rate: float, projector_rate: float) -> list[str]:
    """The only stage; both rates are given, or the config's other one would stay."""
    parts = {"train": list(train), "steps": steps, "lr": rate, "projector_lr": projector_rate}
    return ["--model.stages", json.dumps([parts])]


def choice(arm: str, *, seed: int, scores: Path) -> list[str]:
    """Which layers an arm tunes, and how."""
    what = ARMS[arm]
    options = what.options | ({"seed": seed} if what.drawn else {}) | ({"scores": str(scores)} if what.scores else {})
    rule = {"class_path": f"sparsight.lvlm.surgery.selection.{what.rule}", "init_args": options}
    return ["--model.layers", json.dumps(rule), *(["--model.lora", json.dumps(LORA)] if what.lora else [])]


def arm_options(arm: str, *, rate: float, seed: int, scores: Path) -> list[str]:
    """All that an arm trains, with a rate and a seed."""
    what = ARMS[arm]
    projector = rate if "layers" not in what.train else PROJECTOR_RATE
    seeds = ["--seed_everything", str(seed), f"--data.seed={seed}"]
    chosen = choice(arm, seed=seed, scores=scores)
    return [*chosen, *stage(what.train, steps=STEPS, rate=rate, projector_rate=projector), *seeds]
