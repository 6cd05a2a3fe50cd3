"""The command's verbs beside Lightning's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from blocks import Site, TokenMixer
from sparsight.command.checks.analyze_options import analysis_settings, check_analysis
from sparsight.command.checks.whole_run import check_run
from sparsight.command.store import store_tasks
from sparsight.common.checkpoint.connector import CheckpointConnector
from sparsight.common.datamodule import Wing
from sparsight.common.training.calibration import Split
from sparsight.diffusion.analyze.costs import BudgetOf
from sparsight.diffusion.analyze.verb import Analysed, analyze_denoiser
from sparsight.diffusion.measure.benchmark import TOKENS, Settings, benchmark_model
from sparsight.lvlm.chat.show import show_records
from sparsight.lvlm.export.write import processor_of
from sparsight.lvlm.methods.cost.under_recipe import IMAGE_TOKENS, UnderRecipe
from sparsight.lvlm.scores import LayerScore
from sparsight.lvlm.scores.analyze import analyze_module, default_scores
from sparsight.lvlm.scores.maps.image_maps import ImageMaps
from sparsight.publish.export import export_and_push


class Verbs(Trainer):
    """Lightning's Trainer with further methods; each is a verb."""

    _checkpoint_connector: CheckpointConnector

    def _found(self, named: str | None) -> str | None:
        return None if named is None else str(self._checkpoint_connector.find(named))

    def check(self, model: LightningModule, datamodule: LightningDataModule, output: str | None = None) -> None:
        """Try all that ``fit`` would do: data, a few steps of every stage, validation, checkpoint and export.

        Args:
            model: The module that would be trained.
            datamodule: What it would be trained on.
            output: Folder for what the data look like; ``check`` in the trainer's root folder if not given. Everything
                else that a run writes is written into it too, and removed again.
        """
        check_run(
            self, model, datamodule, folder=Path(self.default_root_dir, "check") if output is None else Path(output)
        )

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        weights: Literal["ema", "raw"] = "ema",
        fp16: bool = True,
        overwrite: bool = False,
        untrained: bool = False,
        metrics: str | None = None,
        licence: str | None = None,
        push_to_hub: str | None = None,
        private: bool = True,
        dry_run: bool = False,
    ) -> Path:
        """Write a trained model as a Hugging Face folder, and compare its outputs after loading it again.

        Args:
            model: The module that was trained.
            datamodule: Tells the processor of an image-text model; not used otherwise.
            ckpt_path: Checkpoint to export. Without one the module is exported as it is, which is refused where it has
                parameters that should have been trained.
            output: Folder to make; ``export`` in the trainer's root folder if not given.
            weights: The checkpoint's moving average (``ema``, needs TrainableEMA in the run) or its last weights.
            fp16: Write half-precision weights as well.
            overwrite: Replace an earlier export.
            untrained: Export parameters that were never trained; the card says so.
            metrics: JSON file of measured values for the model card: a list of objects with name, value and protocol.
            licence: Identifier of the licence on the hub, e.g. apache-2.0; that of the base model if not given.
            push_to_hub: Repository id to upload the folder to. A folder that holds what looks like a secret is not.
            private: Make a new repository private.
            dry_run: Upload nothing, and list the files that would go, with their sizes.

        Returns:
            The folder.
        """
        return export_and_push(
            model,
            Path(self.default_root_dir, "export") if output is None else Path(output),
            checkpoint=self._found(ckpt_path),
            weights=weights,
            metrics=metrics,
            repo=push_to_hub,
            private=private,
            dry_run=dry_run,
            fp16=fp16,
            overwrite=overwrite,
            untrained=untrained,
            licence=licence,
            processor=processor_of(datamodule),
        )

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
        clock: Literal["wall", "processor"] = "wall",
        output: str | None = None,
    ) -> None:
        """Measure FLOPs, time and memory of mixers and student, or of a recipe, against the untouched model.

        Args:
            model: A module whose denoiser has mixers, such as AttentionDistillation, or an image-text model with a
                recipe, such as LVLMEvaluation.
            datamodule: Not used; configurations of other verbs have one.
            tokens: Sizes: tokens of a site, and of the whole denoiser's largest site; under a recipe image tokens of
                a prompt, 49 to 4096 if not given.
            dtypes: Precisions of weights and inputs of denoisers; an image-text model has that of
                ``model.loading.dtype``.
            batch: Samples, of denoisers.
            backward: Measure forward and backward pass of denoisers together too, not forward alone.
            runs: Timed runs of each candidate, taken in turn.
            max_seconds: Time for all runs of one candidate at one size. Sizes at which one run takes more than a
                quarter of it are skipped.
            clock: What is read: the clock on the wall, or processor time (of all threads; on a CPU), which says more
                on a machine that does other work too.
            output: Folder for the table, CSV, JSON and plot; ``benchmark`` in the trainer's root folder if not given.
        """
        folder = Path(self.default_root_dir, "benchmark") if output is None else Path(output)
        if isinstance(model, UnderRecipe):
            if not self.is_global_zero:
                return
            model.to(self.strategy.root_device)
            sizes = IMAGE_TOKENS if tuple(tokens) == TOKENS else tokens
            model.benchmark(sizes, runs=runs, max_seconds=max_seconds, processor=clock == "processor", folder=folder)
            return
        settings = Settings(
            tokens, dtypes, batch=batch, backward=backward, runs=runs, max_seconds=max_seconds, clock=clock
        )
        if self.is_global_zero:
            benchmark_model(model, settings, device=self.strategy.root_device, folder=folder)

    def analyze(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        scores: list[LayerScore] | None = None,
        maps: ImageMaps | None = None,
        batches: int = 16,
        split: Split = "train",
        ckpt_path: str | None = None,
        output: str | None = None,
        mixers: list[Callable[[Site], TokenMixer]] | None = None,
        buckets: int | None = None,
        queries: int | None = None,
        prediction_batches: int | None = None,
        budget: float | None = None,
        budget_of: BudgetOf = "flops",
    ) -> None:
        """Look into a model on real data: the decoder layers of an image-text model, the attentions of a denoiser.

        Args:
            model: A module with decoder layers to score, such as SparseLayerTuning, or with a denoiser, such as
                AttentionDistillation.
            datamodule: Calibration data.
            scores: Of decoder layers: what to measure; block influence, plain and multimodal, and angular distance of
                the last and of all tokens if neither these nor maps are given. Higher means more important.
            maps: Of an image-text model: draw where attention falls on images, such as ``--maps ImageMaps``.
            batches: Number of calibration batches.
            split: Where they come from: train or val. Scores by loss need answers, which training batches have.
            ckpt_path: Checkpoint to analyse; the module as it starts if not given. Of a denoiser, its trained mixers
                are measured, too.
            output: Folder for the files; ``scores`` or, of a denoiser, ``analysis`` in the trainer's root folder if not
                given.
            mixers: Of a denoiser: token mixers whose errors are measured at every site, as they start from the teacher;
                those of the configuration, at their sites, if not given.
            buckets: Of a denoiser: equal parts that the noise levels are cut into; 4 if not given.
            queries: Of a denoiser: most rows of each attention map that are looked at; 1024 if not given.
            prediction_batches: Of a denoiser: batches on which the denoiser is run once more for every site and mixer,
                to see what its prediction loses; 2 if not given.
            budget: Of a denoiser: write a plan, which says what mixer stands at which site, of a denoiser that costs at
                most this share of the untouched one, such as 0.7. A further batch tells what it does to the prediction.
            budget_of: What the budget counts: FLOPs, or measured for one sample: latency, or processor time on a CPU.
        """
        wing: Wing = "diffusion" if isinstance(model, Analysed) else "image-text"
        numbers = {"buckets": buckets, "queries": queries, "prediction_batches": prediction_batches}
        given = {**numbers, "scores": scores, "maps": maps, "batches": batches, "mixers": mixers, "budget": budget}
        check_analysis(given, wing=wing, module=type(model).__name__)
        if isinstance(model, Analysed):
            analyze_denoiser(
                self,
                model,
                datamodule,
                mixers=mixers,
                batches=batches,
                split=split,
                checkpoint=self._found(ckpt_path),
                settings=analysis_settings(numbers),
                budget=budget,
                budget_of=budget_of,
                folder=Path(self.default_root_dir, "analysis") if output is None else Path(output),
            )
            return
        analyze_module(
            self,
            model,
            datamodule,
            scores=(default_scores() if maps is None else []) if scores is None else scores,
            maps=maps,
            batches=batches,
            split=split,
            checkpoint=self._found(ckpt_path),
            folder=Path(self.default_root_dir, "scores") if output is None else Path(output),
        )

    def inspect(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        split: Literal["train", "val", "test"] = "train",
        index: int = 0,
        count: int = 1,
    ) -> None:
        """Print conversations as the model will see them, with what carries the loss, before anything is trained.

        Args:
            model: Not used; the command does not load it.
            datamodule: One that can describe its records, such as InstructionDataModule.
            split: train, val or test.
            index: Position of the first record in the source of the split.
            count: Number of records.
        """
        if self.is_global_zero:
            show_records(datamodule, split=split, index=index, count=count)

    def reformulate(self, model: LightningModule, datamodule: LightningDataModule, output: str) -> None:
        """Write the tasks of an evaluation as files in ReForm-Eval's format, so that questions and options are stored.

        Args:
            model: Not used; the command does not load it.
            datamodule: A ReformEvalDataModule.
            output: Folder for one JSON file of each task; ``datamodules.PublishedTask`` reads them.
        """
        if self.is_global_zero:
            store_tasks(datamodule, Path(output))
