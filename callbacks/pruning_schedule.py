"""Retiring sites while a model trains: attention is handed over to mixers, layers leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sparsight.common.errors import ConfigurationError
from sparsight.common.training.schedule import Prunable, Schedule, Shape, in_order, room, spaced

ORDERS = ("score", "first", "last")


class PruningSchedule(Callback):
    """Retires the sites of a module along a schedule; see ``sparsight.common.training.schedule.Schedule``.

    In AttentionDistillation a retired site is one where the mixer is on instead of the attention. The others learn
    beside their attention until then, so every parameter trains from the first step on, as DDP needs it. With an
    ``amount`` below all, the rest keeps its attention: a hybrid, in exports too.

    In SparseLayerTuning, with ``prune``, a retired site is a decoder layer that is passed by, and left out of exports.

    The order is made in the first process, told to the others, and kept in checkpoints.

    Args:
        shape: ``one_shot``, ``linear``, ``cubic`` or ``exponential``.
        begin: Optimiser step at which it begins.
        end: Optimiser step at which it is done; not needed by ``one_shot``.
        amount: Sites to retire: a number (int) or a share (float, 1.0 is all).
        order: ``score`` (what costs least first, asked again before every retirement), ``first`` or ``last`` (in the
            order of the model), or names of sites; sites that are not named stay.
        spacing: Least distance of two retired sites in the model: 2 keeps one between them (evenly spread removal loses
            less at high shares, arXiv 2603.20275). A site that would leave no room for the last ones is left out.
        rescore: With ``order: score``, ask again after every single site, not once for all that are due.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        shape: Shape = "cubic",
        begin: int = 0,
        end: int = 0,
        amount: int | float = 1.0,
        order: str | list[str] = "score",
        spacing: int = 1,
        rescore: bool = False,
    ) -> None:
        self.schedule = Schedule(shape, begin, end)
        if not amount >= 0 or (isinstance(amount, float) and amount > 1):
            raise ValueError(f"amount is a number of sites (int) or a share up to 1.0 (float); got {amount!r}")
        if isinstance(order, str) and order not in ORDERS:
            raise ValueError(f"order is one of {', '.join(ORDERS)}, or a list of sites; got {order!r}")
        if spacing < 1:
            raise ValueError(f"spacing is 1 (neighbours may go) or more; got {spacing}")
        self.spacing = spacing
        self.rescore = rescore
        self.amount = amount
        self.order = order
        self.retired: list[str] = []

    def shaping(self) -> dict[str, Any]:
        """What must not change on resuming; an amount of 1 is one site, 1.0 are all."""
        choice = {"amount": repr(self.amount), "order": self.order, "spacing": self.spacing, "rescore": self.rescore}
        return asdict(self.schedule) | choice

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that options and module fit, and let no site be retired that is not to be.

        Raises:
            ConfigurationError: The module has no sites, or amount, order or spacing do not fit them.
        """
        if not isinstance(pl_module, Prunable):
            raise ConfigurationError(f"PruningSchedule needs a module with sites; {type(pl_module).__name__} has none")
        sites = pl_module.sites()
        if not isinstance(self.order, str) and (not set(self.order) <= set(sites) or _repeats(self.order)):
            wrong = [name for name in self.order if name not in sites] or _repeats(self.order)
            raise ConfigurationError(f"order names {wrong[0]!r}, unknown or twice; sites are: {', '.join(sites)}")
        if self.order == "score" and self.schedule.begin == 0 and not pl_module.scores_before_training:
            raise ConfigurationError("order: score knows nothing at step 0: set begin to a later step")
        may_go = sites if isinstance(self.order, str) else self.order
        if self._total(pl_module) > len(may_go):
            most = room(may_go, spacing=self.spacing, module=pl_module)
            apart = "" if self.spacing == 1 else f", {most} of them {self.spacing} apart"
            raise ConfigurationError(
                f"amount is {self.amount}, but only {len(may_go)} sites may be retired ({', '.join(may_go)}){apart}: "
                f"give {most} or less"
            )
        left = [name for name in may_go if name not in self.retired]
        missing = self._total(pl_module) - len(self.retired)
        spaced(left, missing, taken=self.retired, spacing=self.spacing, module=pl_module)
        pl_module.retire(self.retired)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Take up what a checkpoint says (FSDP2 restores it after ``on_fit_start``); warn of a run too short."""
        pl_module.retire(self.retired)
        steps, total = trainer.max_steps, self._total(pl_module)
        if steps > 0 and self.schedule(steps - 1, total) < total:
            rank_zero_warn(
                f"PruningSchedule will have retired {self.schedule(steps - 1, total)} of {total} sites when training "
                f"ends after {steps} steps: lower begin or end, or train longer"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Retire what is due before the step is trained."""
        assert isinstance(pl_module, Prunable)
        due = self.schedule(trainer.global_step, self._total(pl_module)) - len(self.retired)
        while due > 0:
            chosen = self._next(trainer, pl_module, 1 if self.rescore else due)
            self.retired = [*self.retired, *chosen]
            pl_module.retire(self.retired)
            rank_zero_info(f"step {trainer.global_step}: retired {', '.join(chosen)}; {len(self.retired)} in all")
            due -= len(chosen)
        pl_module.log("train/retired_sites", float(len(self.retired)))

    def _next(self, trainer: Trainer, module: Prunable, count: int) -> Sequence[str]:
        scores = module.score() if self.order == "score" else None
        left = [name for name in in_order(module.sites(), self.order, scores) if name not in self.retired]
        rest = self._total(module) - len(self.retired) - count
        chosen = spaced(left, count, rest=rest, taken=self.retired, spacing=self.spacing, module=module)
        return trainer.strategy.broadcast(chosen)

    def state_dict(self) -> dict[str, Any]:
        """What was retired, in order."""
        return {"retired": list(self.retired)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        self.retired = list(state_dict["retired"])

    def _total(self, module: Prunable) -> int:
        count = len(module.sites() if isinstance(self.order, str) else self.order)
        return round(self.amount * count) if isinstance(self.amount, float) else self.amount


def _repeats(names: Sequence[str]) -> list[str]:
    return [name for position, name in enumerate(names) if name in names[:position]]
