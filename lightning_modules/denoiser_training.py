"""Train or fine-tune a diffusers denoiser: to make teachers, and to polish students."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_modules.diffusion import STREAM_OFFSET_EVAL, DiffusionModule
from sparsight.common.errors import ConfigurationError, require
from sparsight.common.measure.memory_table import MemoryEstimate
from sparsight.common.moved import takes_former_options
from sparsight.common.training.dtypes import sent
from sparsight.common.training.lr_schedules import LearningRateSchedule
from sparsight.common.training.progress.tell import tell
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.measure.run_memory import run_memory
from sparsight.diffusion.model.diffusion_model import DiffusionModel, predict
from sparsight.diffusion.model.load import load_polished
from sparsight.diffusion.model.loading import PipelineLoading
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.model.timesteps import Timesteps
from sparsight.diffusion.train.compute import DenoiserCompute
from sparsight.diffusion.train.noise_levels import NoiseLevels
from sparsight.diffusion.train.timestep_weights import min_snr_weight

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin

WITHOUT_END = ("constant", "constant_with_warmup")  # schedules that ask for no number of steps


@dataclass(frozen=True)
class Conditions:
    """What a fresh denoiser is told beside the noise.

    Args:
        class_names: Names of the classes of a DiT, kept in the exported pipeline.
        text_encoder: Text encoder of a denoiser of captions: folder or hub id of transformers, or ``all-MiniLM-L6-v2``,
            which the ``demo`` extra brings. It stays frozen and is in no checkpoint.
        text_tokens: Tokens of every caption for it.
    """

    class_names: list[str] | None = None
    text_encoder: str | None = None
    text_tokens: int = 16


@takes_former_options
class DenoiserTraining(DiffusionModule):
    """Denoising training (Ho et al., arXiv 2006.11239).

    What is predicted is the noise scheduler's choice: noise, velocity (arXiv 2202.00512), or flow (arXiv 2210.02747).

    Args:
        pretrained: Pipeline folder, shipped model or hub id to start from; its denoiser, scheduler, text encoders and
            VAE are used.
        denoiser: A denoiser to use instead of the pipeline's. Without a pipeline it is trained from nothing, on pixels:
            a ``diffusers.DiTTransformer2DModel`` on classes, a ``diffusers.UNet2DConditionModel`` or
            ``diffusers.SD3Transformer2DModel`` on captions.
        noise_scheduler: A scheduler to use instead of the pipeline's, e.g. ``diffusers.DDPMScheduler``.
        conditions: What a fresh denoiser is told; a pipeline has its own.
        trainable: Patterns of parameter names to train, e.g. ``*.attn1.*``; everything else is frozen.
        condition_dropout: Share of samples trained without their condition, for classifier-free guidance.
        noise: How often each noise level is trained at, and what its loss weighs.
        optimizer: Optimiser class and options.
        schedule: How the learning rate goes.
        compute: What spares memory or time.
        seed: Decides timesteps, noise and condition dropout, together with step and sample index.
        sampling: Steps, guidance and size of what ``predict``, sample grids and metrics draw; where the denoiser takes
            guidance as an input, it is trained at this one.
        max_skipped_steps: How many steps with losses or gradients that are not finite are left out before the run ends.
        loading: How the pipeline is read; what is trained is in fp32 however it is stored.

    Raises:
        ValueError: Neither a pipeline nor denoiser and scheduler are given, an option does not belong to them, or no
            parameter matches ``trainable``.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        denoiser: ModelMixin | None = None,
        noise_scheduler: SchedulerMixin | None = None,
        conditions: Conditions = Conditions(),
        trainable: Sequence[str] = ("*",),
        condition_dropout: float = 0.1,
        noise: NoiseLevels = NoiseLevels(),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4),
        schedule: LearningRateSchedule = LearningRateSchedule(),
        compute: DenoiserCompute = DenoiserCompute(),
        seed: int = 0,
        sampling: Sampling = Sampling(),
        max_skipped_steps: int = 0,
        loading: PipelineLoading = PipelineLoading(),
    ) -> None:
        super().__init__(seed=seed, sampling=sampling, max_skipped_steps=max_skipped_steps)
        self.keep_hyperparameters(ignore=["denoiser", "noise_scheduler"])
        require(0 <= condition_dropout <= 1, "condition_dropout", condition_dropout, "0 to 1")
        if pretrained is not None:
            if conditions != Conditions():
                raise ValueError("conditions are those of the pretrained pipeline: leave them out")
            pipeline = _with_other_parts(load_polished(pretrained, **loading.source), denoiser, noise_scheduler)
        elif denoiser is None or noise_scheduler is None:
            raise ValueError("give pretrained, or both denoiser and noise_scheduler")
        else:
            pipeline = family_of(denoiser).begin(denoiser, noise_scheduler, **asdict(conditions))
        self.diffusion = DiffusionModel(pipeline)
        self.diffusion.size, self.diffusion.guidance = sampling.size, sampling.guidance_scale
        self.diffusion.sample_shape()  # refused now, not after training
        self.denoiser: Any = self.diffusion.denoiser.float()  # half precision swallows small updates
        self.condition_dropout = condition_dropout
        self.noise = noise
        self.optimizer, self.schedule = optimizer, schedule
        for name, parameter in self.denoiser.named_parameters():
            parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in trainable))
        if not any(p.requires_grad for p in self.denoiser.parameters()):
            raise ValueError(f"no parameter of the denoiser matches trainable={list(trainable)}")
        if compute.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.compiles = compute.compile
        self._schedule_before: int | None = None  # steps of the schedule that a checkpoint was made with
        self._trained = {f"denoiser.{n}" for n, p in self.denoiser.named_parameters() if p.requires_grad}

    def trained_names(self) -> set[str]:
        """Names of the trained parameters."""
        return self._trained

    def untrained(self) -> str | None:
        """The denoiser, if no optimiser step changed it."""
        if self.has_learned:
            return None
        source = self.hparams["pretrained"]
        told = "random" if source is None else f"that of {source}"
        return f"no optimiser step has changed the denoiser: it is {told}"

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser with its learning-rate schedule over ``max_steps``."""
        return self.optimisers(
            self.optimizer,
            lr_schedule=self.schedule.name,
            warmup_steps=self.schedule.warmup_steps,
            steps=self._schedule_steps(),
        )

    def _schedule_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise ConfigurationError("trainer.max_steps is not given, so training has no end: give it, or max_epochs")
        return int(steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the length of the learning-rate schedule."""
        if self._trainer is not None:
            checkpoint["schedule_steps"] = self._schedule_steps()
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember it."""
        super().on_load_checkpoint(checkpoint)
        self._schedule_before = checkpoint.get("schedule_steps")

    def on_train_start(self) -> None:
        """Say so if the learning rate goes on along another schedule than it came."""
        before, now = self._schedule_before, self._schedule_steps()
        if before not in (None, now) and self.schedule.name not in WITHOUT_END:
            rank_zero_warn(
                f"trainer.max_steps makes this run {now} steps long, that of the checkpoint was {before}: the "
                f"{self.schedule.name} schedule is stretched from here on, and the learning rate jumps. Keep the "
                "length to go on as before"
            )

    def estimated_memory(self) -> MemoryEstimate:
        """Of a step with all that is trained."""
        return run_memory(self, objectives=["denoising"], optimizer=lambda p, _: self.optimizer(p))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean squared error to the target of the noising process."""
        timesteps = self.noise.timesteps or Timesteps()
        options: dict[str, Any] = {"condition_dropout": self.condition_dropout, "timesteps": timesteps}
        noised = self.noised(batch, step=self.global_step, **options)
        self.draw_ahead(noised, batch_idx)
        loss = self._loss(noised)
        self.guard.note({"denoising": loss}, batch)
        self.log("train/loss", loss)
        tell(self, "loss", loss.detach())
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The loss at draws that are the same in every validation."""
        loss = self._loss(self.noised(batch, step=STREAM_OFFSET_EVAL, condition_dropout=0.0))
        self.log("val/loss", loss, prog_bar=True, batch_size=len(batch["index"]), sync_dist=True)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The loss on the test data, at draws that are the same in every test."""
        loss = self._loss(self.noised(batch, step=STREAM_OFFSET_EVAL, condition_dropout=0.0))
        self.log("test/loss", loss, batch_size=len(batch["index"]), sync_dist=True)

    def _loss(self, noised: Mapping[str, Any]) -> Tensor:
        if "target" not in noised:
            raise ValueError("the data holds trajectory states without a true target: train on images or samples")
        output = predict(self.denoiser, noised["xt"], noised["timestep"], noised["cond"])
        error_B = (output - noised["target"].float()).square().flatten(1).mean(1)
        if self.noise.snr_gamma is not None:
            snr_B = self.diffusion.process.snr(noised["level"])
            weight_B = min_snr_weight(snr_B, self.noise.snr_gamma, self.diffusion.process.prediction_type)
            error_B = error_B * sent(weight_B, error_B.device)
        return error_B.mean()


def _with_other_parts(pipeline: Any, denoiser: ModelMixin | None, scheduler: SchedulerMixin | None) -> Any:
    component = "unet" if pipeline.components.get("unet") is not None else "transformer"
    if denoiser is not None:
        pipeline.register_modules(**{component: denoiser})
    if scheduler is not None:
        pipeline.register_modules(scheduler=scheduler)
    return pipeline
