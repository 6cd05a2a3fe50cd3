"""What a run trains of its model, in a few lines."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from rich.console import Console
from rich.table import Table

from sparsight.common.tables import short


class ParameterSummary(ModelSummary):
    """Prints the parts of a module with their parameters, and how many of them are trained.

    Lightning's own counts FLOPs too, which are 0 without an example input; those of mixers and their sites are in the
    report that distillation prints.

    Args:
        max_depth: Levels of parts inside parts; 0 prints nothing, -1 all.
        console: Where to; standard output if not given.
    """

    def __init__(self, max_depth: int = 1, console: Console | None = None) -> None:
        super().__init__(max_depth)
        self._console = console

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it."""
        if not self._max_depth:
            return
        summary = self._summary(trainer, pl_module)  # counted by all processes, as some hold a part
        if not trainer.is_global_zero:
            return
        table = Table()
        for heading, right in (("part", False), ("class", False), ("parameters", True)):
            table.add_column(heading, justify="right" if right else "left", overflow="fold")
        parts: dict[str, list[Any]] = dict(summary._get_summary_data())
        for name, kind, count in zip(parts["Name"], parts["Type"], parts["Params"], strict=True):
            table.add_row(name, kind, count)
        console = self._console or Console()
        console.print(table)
        trained, total = summary.trainable_parameters, summary.total_parameters
        share = f" ({trained / total:.1%})" if total else ""
        console.print(f"trained: {short(trained)} of {short(total)} parameters{share}", highlight=False)
