"""What the stages of an instruction tuning train, as configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsight.common.errors import need_numbers, need_texts, need_whole, require
from sparsight.common.training.lr_schedules import SCHEDULES
from sparsight.lvlm.train.trained import LAYERS, METHODS, PROJECTOR, Part


@dataclass
class TuningStage:
    """One stage of an instruction tuning; it begins with a fresh optimiser.

    LLaVA's recipe is two of them: the projector alone on captions, then layers and projector on instructions.

    Args:
        steps: Optimiser steps.
        train: What is trained: ``layers`` (the chosen decoder layers), ``projector``, ``methods`` (weights of the
            recipe's methods), or several of them.
        lr: Learning rate of the layers, and of all that has none of its own, at its highest.
        projector_lr: Learning rate of the projector; ``lr`` if not given.
        methods_lr: Learning rate of methods' weights; ``lr`` if not given.
        lr_schedule: One of transformers' schedules, e.g. ``cosine`` or ``constant_with_warmup``.
        warmup_share: Share of the steps, 0 to 1, over which the learning rate rises.

    Raises:
        ValueError: ``steps`` is not positive, nothing or an unknown part is trained, the schedule is unknown, or a
            learning rate or the share is out of range.
    """

    steps: int
    train: Sequence[Part] = field(default_factory=lambda: [LAYERS, PROJECTOR])
    lr: float = 2e-5
    projector_lr: float | None = None
    lr_schedule: str = "cosine"
    warmup_share: float = 0.03
    methods_lr: float | None = None

    def __post_init__(self) -> None:
        need_whole(steps=self.steps)
        need_numbers(lr=self.lr, projector_lr=self.projector_lr, methods_lr=self.methods_lr)
        need_numbers(warmup_share=self.warmup_share)
        need_texts("train", self.train)
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        if not self.train or not set(self.train) <= {LAYERS, PROJECTOR, METHODS}:
            raise ValueError(f"a stage trains {LAYERS}, {PROJECTOR}, {METHODS} or several, got {list(self.train)}")
        for part in self.train:
            name = "lr" if self._own.get(part) is None else f"{part}_lr"
            require(0 < self.lr_of(part) < math.inf, name, self.lr_of(part), f"above 0, or leave {part} out of train")
        if self.lr_schedule not in SCHEDULES:
            raise ValueError(f"lr_schedule is one of {', '.join(SCHEDULES)}; got {self.lr_schedule!r}")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share is a share from 0 to 1, got {self.warmup_share}")

    def lr_of(self, part: Part) -> float:
        """Learning rate of a part."""
        own = self._own.get(part)
        return self.lr if own is None else own

    @property
    def _own(self) -> dict[Part, float | None]:
        return {PROJECTOR: self.projector_lr, METHODS: self.methods_lr}

    @property
    def rates(self) -> str:
        """Learning rates of what is trained, in words."""
        found = {part: self.lr_of(part) for part in self.train}
        if len(set(found.values())) == 1:
            return f"{found[self.train[0]]:g}"
        return ", ".join(f"{part} {lr:g}" for part, lr in found.items())

    @property
    def objective(self) -> str:
        """What is trained, in words."""
        return " and ".join(self.train)
