"""Metrics of drawn samples in validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.drawing import DrawsTeacher, check_drawable
from callbacks.measured import (
    check_metrics,
    check_numbers,
    drawing_protocol,
    measured_on,
    preparation,
    run_folder,
    share_extractors,
    write_values,
)
from sparsight.common.captions import read_captions
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.processes import everywhere, refuse_together
from sparsight.evaluation.drawn_scores import BEGINS, DrawnScores
from sparsight.evaluation.images import GenerationMetric, Samples
from sparsight.evaluation.images.draws import Draw, OwnDraws
from sparsight.evaluation.images.images import resized
from sparsight.evaluation.images.samples import SampleValues
from sparsight.evaluation.images.set_distance import SetDistance


class GenerationMetrics(Callback):
    """Draws samples when validation or test ends, feeds metrics with them, and logs what they return.

    Samples are drawn with the module's seed, sampler steps, guidance and precision, and with the average of
    TrainableEMA if it is there; sample ids are dealt to the processes, so that their number changes nothing. Images are
    dropped as soon as the metrics have seen them. Metrics are no part of the module or of its checkpoints.

    Names tell what and how many: ``test/fid_inception_clean_256px_30k`` are 30 000 samples compared at 256 pixels.
    Values and protocols are also written to ``metrics/<stage>_step_<step>.json`` in the run's log folder, a file that
    ``sparsight export --metrics`` puts on the model card. What metrics say of every sample by itself is written to
    ``drawn_<stage>_step_<step>.json``, which ``sparsight compare`` takes.

    Args:
        metrics: What is measured.
        num_samples: Samples to draw.
        labels: Class labels to draw, repeated as often as needed.
        captions: Captions to draw, repeated as often as needed: a list, or a text file with one in each line. Without
            labels and captions, those of the first ``num_samples`` records of the stage's data are drawn.
        references: What distances between sets refer to: all images of the stage's data, or the ``teacher``'s samples
            of the same ids. Neither is used by metrics that have read their statistics from a file.
        compare_size: Side in pixels at which images are compared (bicubic, antialiased); as they are if not given.
        batch_size: Samples drawn together on a process.
        every_n_steps: Measure in the first validation of ``fit`` after each such number of optimiser steps: in all
            validations if not given. 0 measures in ``validate`` and ``test`` alone.

    Raises:
        ValueError: Options contradict each other or are out of range.
        FileNotFoundError: The caption file is missing.
    """

    def __init__(
        self,
        metrics: list[GenerationMetric],
        num_samples: int,
        labels: list[int] | None = None,
        captions: list[str] | str | None = None,
        references: Literal["data", "teacher"] = "data",
        compare_size: int | None = None,
        batch_size: int = 32,
        every_n_steps: int = 1,
    ) -> None:
        self.metrics = metrics
        self.num_samples = num_samples
        self.column = "label" if labels is not None else "caption" if captions is not None else None
        self.conditions: Sequence[Any] | None = labels if labels is not None else read_captions(captions)
        self.references = references
        self.compare_size = compare_size
        self.batch_size = batch_size
        self.every_n_steps = every_n_steps
        self.measured_at = 0
        check_numbers(
            num_samples=(num_samples, 1),
            batch_size=(batch_size, 1),
            every_n_steps=(every_n_steps, 0),
            compare_size=(compare_size, 1),
        )
        if labels is not None and captions is not None:
            raise ValueError("give labels or captions, and not both")
        if self.conditions is not None and not self.conditions:
            raise ValueError("labels or captions are empty: leave them out to draw those of the data")
        check_metrics(metrics, samples=num_samples, column=self.column, references=references)
        share_extractors(metrics)
        self._sets = [metric for metric in metrics if isinstance(metric, SetDistance)]
        self._stage = ""
        self._wanted = self._measuring = False
        self._draws = OwnDraws(num_samples, processes=1, rank=0)

    def known_captions(self) -> Sequence[str]:
        """Captions that are given; not those of the data."""
        return self.conditions[: self.num_samples] if self.column == "caption" and self.conditions else ()

    # -- when --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot draw what the metrics need.

        Raises:
            ConfigurationError: It draws no samples, draws from other conditions than are given, or has no teacher.
        """
        check_drawable(self, pl_module, column=self.column, conditions=self.conditions)
        needs_teacher = self.references == "teacher" or any(metric.needs_teacher for metric in self.metrics)
        if needs_teacher and not isinstance(pl_module, DrawsTeacher):
            raise ConfigurationError(
                f"{type(pl_module).__name__} has no teacher: leave out metrics of fidelity and references: teacher"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation is measured."""
        fitting, every, step = trainer.state.fn == TrainerFn.FITTING, self.every_n_steps, trainer.global_step
        self._wanted = not fitting or every > 0
        due = self._wanted and not trainer.sanity_checking
        if fitting and due:
            due = step // every > self.measured_at // every
            self.measured_at = step if due else self.measured_at
        self._begin("val", trainer, pl_module, measuring=due)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tests are always measured."""
        self._begin("test", trainer, pl_module, measuring=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Take reference images and conditions; what is missing is noticed in the check before training already."""
        if self._wanted:
            self._check(pl_module, batch, trainer.val_dataloaders)
        if self._measuring:
            self._see(pl_module, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Take reference images and conditions."""
        self._check(pl_module, batch, trainer.test_dataloaders)
        self._see(pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and measure."""
        if self._measuring:
            self._measure(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and measure."""
        self._measure(trainer, pl_module)

    def may_log(self, name: str) -> bool:
        """Whether a value may yet come under this name: metrics are measured every so many steps."""
        return name.startswith("val/")

    @property
    def state_key(self) -> str:
        """Own name in checkpoints for every combination of metrics."""
        return self._generate_state_key(
            metrics=[type(metric).__name__ for metric in self.metrics],
            num_samples=self.num_samples,
            every_n_steps=self.every_n_steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """The step of the last measurement, so that a resumed run goes on measuring."""
        return {"measured_at": self.measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        self.measured_at = state_dict["measured_at"]

    # -- the stage's data --------------------------------------------------------------------------------------------

    def _begin(self, stage: str, trainer: Trainer, module: LightningModule, *, measuring: bool) -> None:
        self._measuring = measuring
        if not measuring:
            return
        self._draws = OwnDraws(self.num_samples, processes=trainer.world_size, rank=trainer.global_rank)
        if self.conditions is not None:
            self._draws.fill(self.conditions)
        for metric in self.metrics:
            metric.to(module.device)
            metric.reset()
        for distance in self._sets:
            if distance.wants_reference or stage != self._stage:
                distance.forget_reference()
        self._stage = stage

    def _check(self, module: Any, batch: Mapping[str, Any], loader: Any) -> None:
        dataset: Any = loader.dataset if isinstance(loader, DataLoader) else None
        for distance in self._sets:
            if self.references == "data" and distance.wants_reference and "image" not in batch:
                raise ConfigurationError(
                    f"{type(distance).__name__} needs reference images, but the data holds only {sorted(batch)}: give "
                    "it a file of reference statistics, or set references: teacher"
                )
            if self.references == "data":
                distance.prepared_by(preparation(dataset if "image" in batch else None, self.compare_size))
        if self.conditions is not None:
            return
        column = module.diffusion.conditioner.column
        if column not in batch:
            raise ConfigurationError(
                f"the data has no {column!r} to draw: give labels or captions to GenerationMetrics"
            )
        if isinstance(dataset, Sized):
            self._check_found(len(dataset))

    def _check_found(self, found: int) -> None:
        if found < self.num_samples:
            raise ConfigurationError(
                f"num_samples is {self.num_samples}, but the data of this stage has only {found} conditions: lower it, "
                "or give labels or captions"
            )

    def _see(self, module: Any, batch: Mapping[str, Any]) -> None:
        if self.references == "data":
            for distance in self._sets:
                if distance.wants_reference:
                    distance.update_reference(self._compared(batch["image"].float() / 2 + 0.5), batch["index"])
        if not self._draws.complete:
            values = batch[module.diffusion.conditioner.column]
            self._draws.add(batch["index"].tolist(), values.tolist() if isinstance(values, Tensor) else values)

    # -- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, trainer: Trainer, module: Any) -> None:
        if self.references == "data":
            for distance in self._sets:  # what is wrong with it shows before the long part
                distance.complete_reference()
        counted = torch.tensor(self._draws.counted, device=module.device)
        self._check_found(int(trainer.strategy.reduce(counted, reduce_op="sum")))
        draws = self._draws.all()
        tenth = -(-len(draws) // 10)
        for first in range(0, len(draws), self.batch_size):
            self._draw(trainer, module, draws[first : first + self.batch_size])
            done = min(first + self.batch_size, len(draws))
            if done // tenth > first // tenth:
                rank_zero_info(f"generation metrics: drew {done} of {len(draws)} samples a process")
        end = measured_on(self.num_samples, self.compare_size)
        values: dict[str, tuple[float, str]] = {}
        of_samples: dict[str, SampleValues] = {}
        for metric in self.metrics:
            computed = metric.compute()
            if metric.of_samples is not None:
                of_samples[f"{next(iter(computed))}{end}"] = metric.of_samples
            values |= {
                f"{self._stage}/{name}{end}": (float(value), metric.protocol) for name, value in computed.items()
            }
            metric.reset()
        module.log_dict({name: value for name, (value, _) in values.items()}, sync_dist=True)
        against = "the teacher's samples of the same ids" if self.references == "teacher" else None
        protocol = drawing_protocol(trainer, module, self.num_samples, size=self.compare_size, against=against)
        write_values(trainer, self._stage, values, protocol=protocol)
        self._write_samples(trainer, module, of_samples)

    def _write_samples(self, trainer: Trainer, module: Any, found: Mapping[str, SampleValues]) -> None:
        """Keep the values of every sample, by which runs are compared in pairs."""
        parts = everywhere({draw.id: draw.condition for draw in self._draws.all() if draw.counted})
        folder = run_folder(trainer)
        if not found or not trainer.is_global_zero:
            return
        conditions = {number: condition for part in parts for number, condition in part.items()}
        drawn = {"seed": module.seed, "samples": self.num_samples, "compare_size": self.compare_size}
        name = f"{BEGINS}{self._stage}_step_{trainer.global_step:07d}.json"
        DrawnScores.of(found, drawn=drawn, conditions=conditions).save(folder / name)

    def _draw(self, trainer: Trainer, module: Any, draws: Sequence[Draw]) -> None:
        column = self.column or module.diffusion.conditioner.column
        conditions = [draw.condition for draw in draws]
        batch = {column: torch.tensor(conditions, device=module.device) if column == "label" else conditions}
        index = torch.tensor([draw.id for draw in draws])
        kept = torch.tensor([draw.counted for draw in draws])
        wants_images = [d for d in self._sets if self.references == "teacher" and d.wants_reference]
        teacher_latents = teacher_images = None
        with trainer.precision_plugin.forward_context():
            latents = module.draw_latents(batch, index)
            images = module.diffusion.decode(latents)
            if wants_images or any(metric.needs_teacher for metric in self.metrics):
                teacher_latents = module.draw_teacher_latents(batch, index)
                teacher_images = module.diffusion.decode(teacher_latents)

        def feed() -> None:
            if not kept.any():
                return
            samples = Samples(
                images=self._compared(images[kept]),
                index=index[kept],
                captions=[draw.condition for draw in draws if draw.counted] if column == "caption" else None,
                teacher_images=None if teacher_images is None else self._compared(teacher_images[kept]),
                latents=latents[kept],
                teacher_latents=None if teacher_latents is None else teacher_latents[kept],
            )
            for distance in wants_images:
                assert samples.teacher_images is not None
                distance.update_reference(samples.teacher_images, samples.index)
            for metric in self.metrics:
                metric.update(samples)

        refuse_together(feed)

    def _compared(self, images: Tensor) -> Tensor:
        return images if self.compare_size is None else resized(images, self.compare_size).clamp(0, 1)
