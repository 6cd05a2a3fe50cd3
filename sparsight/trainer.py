"""The Trainer whose methods are the command's verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from sparsight.analysis.benchmark import TOKENS, Settings, benchmark_model


class SparsightTrainer(Trainer):
    """Lightning's Trainer; its further methods are the command's further verbs."""

    def benchmark(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        tokens: Sequence[int] = TOKENS,
        dtypes: Sequence[Literal["float32", "bfloat16", "float16"]] = ("float32",),
        batch: int = 1,
        backward: bool = True,
        runs: int = 20,
        max_seconds: float = 20.0,
        output: str | None = None,
    ) -> None:
        """Measure FLOPs, time and memory of mixers and student against the untouched model.

        Args:
            model: A module whose denoiser has mixers, such as AttentionDistillation.
            datamodule: Not used; configurations of other verbs have one.
            tokens: Sizes: tokens of a site, and of the whole denoiser's largest site.
            dtypes: Precisions of weights and inputs.
            batch: Samples.
            backward: Measure forward and backward pass together too, not forward alone.
            runs: Timed runs of each candidate, taken in turn.
            max_seconds: Time for all runs of one candidate at one size. Sizes at which one run takes more than a
                quarter of it are skipped.
            output: Folder for the table, CSV, JSON and plot; ``benchmark`` in the trainer's root folder if not given.
        """
        settings = Settings(tokens, dtypes, batch=batch, backward=backward, runs=runs, max_seconds=max_seconds)
        folder = Path(self.default_root_dir, "benchmark") if output is None else Path(output)
        if self.is_global_zero:
            benchmark_model(model, settings, device=self.strategy.root_device, folder=folder)
