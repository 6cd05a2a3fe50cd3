"""Distil the self-attention of a pretrained diffusion model into token mixers, everything else frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from blocks.base import Site, TokenMixer
from lightning_modules.beside_mixers import BesideMixers
from lightning_modules.hands_over import HandsOver
from lightning_modules.in_stages import SAVED
from lightning_modules.stored_base import StoredBase
from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import require
from sparsight.common.hashes import short_hash
from sparsight.common.measure.memory_table import MemoryEstimate
from sparsight.common.moved import takes_former_options
from sparsight.common.quantised.loading import DTYPES
from sparsight.common.training.processes import gathered, process_count
from sparsight.common.training.progress.tell import log_together, tell
from sparsight.common.training.sharding import is_sharded, own_class
from sparsight.common.training.stage_clock import StageClock
from sparsight.diffusion.measure.drawn_costs import drawn_report, write_costs
from sparsight.diffusion.measure.run_memory import run_memory
from sparsight.diffusion.model.loading import TeacherLoading
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.model.timesteps import Timesteps
from sparsight.diffusion.surgery.plan import PlanEntry, plan_from
from sparsight.diffusion.surgery.record import differing, record_of
from sparsight.diffusion.surgery.replace import replace
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import SiteSelection
from sparsight.diffusion.surgery.training_free import check_learns, is_training_free
from sparsight.diffusion.train.capture import capture_site
from sparsight.diffusion.train.compute import DistillationCompute
from sparsight.diffusion.train.distiller import Distiller
from sparsight.diffusion.train.former_names import follow_names, former_names
from sparsight.diffusion.train.relative_errors import RecentErrors
from sparsight.diffusion.train.stages import (
    Stage,
    check_guided,
    check_learners,
    check_trajectories,
    check_weights,
    site_weight,
)
from sparsight.diffusion.train.start import start_alike, start_from_teacher
from sparsight.diffusion.train.trained_parts import TrainedParts


@takes_former_options
class AttentionDistillation(BesideMixers, HandsOver, StoredBase):
    """Layer-wise and end-to-end distillation of self-attention (Dong et al., arXiv 2504.21292), in one ``fit``.

    Args:
        teacher: Pipeline folder, shipped model or hub id.
        mixer: What replaces self-attention; class and options, the site is filled in for every place.
        stages: What is optimised, in this order, each with a fresh optimiser.
        sites: Which self-attentions are replaced; all if not given.
        plan: Several mixers, in place of ``mixer`` and ``sites``: entries of sites and a mixer, or null to keep
            attention there. The first entry that matches a site counts; where none does, attention stays.
        site_weights: Weight of a site's loss by pattern of its path; the first match counts, others weigh 1.
        trained: What trains with the mixers, and where these start.
        optimizer: Optimiser class and options; every stage makes one with its own learning rate.
        condition_dropout: Share of samples without their condition.
        compute: What spares memory or time.
        seed: Decides timesteps, noise and condition dropout, together with step and sample index.
        sampling: Steps, guidance and size of what ``predict``, sample grids and metrics draw. Where the denoiser takes
            guidance as an input (FLUX.1 [dev]), the student is trained at this guidance, too.
        max_skipped_steps: How many steps with losses or gradients that are not finite are left out before the run ends.
        loading: How the teacher is read, and what it is held in.

    Raises:
        ValueError: No stage, no mixer or a plan beside one, unknown sites, or sites that cannot be replaced.
    """

    scores_before_training = False  # mixers have no errors yet
    frozen_option = "model.loading.dtype"

    def __init__(
        self,
        teacher: str,
        mixer: Callable[[Site], TokenMixer] | None = None,
        stages: Sequence[Stage] = (),
        sites: SiteSelection | None = None,
        plan: Sequence[PlanEntry] | None = None,
        site_weights: dict[str, float] | None = None,
        trained: TrainedParts = TrainedParts(),
        optimizer: Callable[[Iterable[torch.nn.Parameter], float], torch.optim.Optimizer] = torch.optim.AdamW,
        condition_dropout: float = 0.1,
        compute: DistillationCompute = DistillationCompute(),
        seed: int = 0,
        sampling: Sampling = Sampling(),
        max_skipped_steps: int = 0,
        loading: TeacherLoading = TeacherLoading(),
    ) -> None:
        super().__init__(seed=seed, sampling=sampling, max_skipped_steps=max_skipped_steps)
        self.keep_hyperparameters()
        for pattern, weight in (site_weights or {}).items():
            require(0 <= weight < math.inf, f"site_weights.{pattern}", weight, "0 or more")
        require(0 <= condition_dropout <= 1, "condition_dropout", condition_dropout, "0 to 1")
        entries = plan_from(mixer=mixer, sites=sites, plan=plan)
        self.clock = StageClock(stages)
        self.revision, self.replicate_trained = loading.revision, compute.replicate_trained
        self.load_base(teacher, dtype=DTYPES[loading.dtype], quantised=loading.quantization, source=loading.source)
        self.diffusion.size, self.diffusion.guidance = sampling.size, sampling.guidance_scale
        self.diffusion.sample_shape()  # refused now, not after training
        self.shells = replace(self.denoiser, entries, train_projections=trained.projections)
        self.site_weights = {path: site_weight(site_weights or {}, path) for path in self.shells}
        check_weights(site_weights or {}, self.site_weights)
        if any(stage.objective == "layerwise" for stage in self.clock.stages):
            check_learners(self.site_weights, self._learners())
        self.free_rest(trained.rest, trained.lora)
        self.quantise_base()
        scale = sampling.guidance_scale
        check_guided(self.clock.stages, scale=scale, is_input=self.diffusion.takes_guidance)
        self.distiller = Distiller(
            self.denoiser, self.shells, self.site_weights, self.diffusion.process, guidance=scale
        )
        self.optimizer = optimizer
        self.init_samples = trained.init_samples
        self.condition_dropout = condition_dropout
        if compute.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.compiles = compute.compile
        self._trained = {f"denoiser.{n}" for n, p in self.denoiser.named_parameters() if p.requires_grad}
        self.require_gradients()
        self._restored = False
        self.recent_errors = RecentErrors(self.sites())

    def _learners(self) -> list[str]:
        """Sites with something to train."""
        return [path for path, shell in self.shells.items() if any(p.requires_grad for p in shell.mixer.parameters())]

    # -- state -----------------------------------------------------------------------------------------------------

    def trained_names(self) -> set[str]:
        """Names of the mixers' parameters, and of trained projections."""
        return self._trained

    def untrained(self) -> str | None:
        """Mixers that are on at their sites, have parameters, and were changed by no optimiser step."""
        if self.has_learned:
            return None
        computing = [shell.as_student().mixer for shell in self.shells.values() if shell.handed_over]
        kinds = sorted({own_class(mixer).__name__ for mixer in computing if not is_training_free(mixer)})
        kinds += ["other layers"] if self.rest_names else []
        return f"the student is untrained: no optimiser step has changed its {' and '.join(kinds)}" if kinds else None

    def train(self, mode: bool = True) -> AttentionDistillation:
        """The frozen denoiser stays in eval mode, only mixers follow."""
        super().train(mode)
        self.denoiser.eval()
        for shell in self.shells.values():
            shell.mixer.train(mode)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stage, the base model's identity and what was changed in it."""
        checkpoint[SAVED] = self._plan() | {
            "teacher_hash": self.teacher_hash,
            "handed_over": [path for path, shell in self.shells.items() if shell.handed_over],
            "recent_errors": self.recent_errors.state(),
        }
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the stage; refuse a checkpoint of another base model or of other mixers.

        Raises:
            ValueError: Teacher or mixers differ.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(SAVED, {})
        recorded = str(saved.get("teacher_hash"))
        if recorded != self.teacher_hash and not self._was_teacher(recorded):
            raise ValueError(
                f"the checkpoint was made from another teacher than {self.teacher!r}: weights hash "
                f"{short_hash(recorded)}, not {short_hash(self.teacher_hash)}"
            )
        told = differing(saved["record"], record_of(self.denoiser))
        if told:
            raise ValueError(f"the checkpoint holds other mixers than the configuration asks for: {told}")
        self.follow_names(checkpoint)
        self.take_stage(checkpoint)
        self.require_gradients()
        # checkpoints from before sites could wait have neither
        self.recent_errors.take(saved.get("recent_errors", {}), self.device)
        self.retire(saved.get("handed_over", self.sites()))
        self._restored = True

    def former_names(self) -> dict[str, str]:
        """Names that tensors have now, by those of earlier versions."""
        return former_names(self.shells)

    def follow_names(self, checkpoint: dict[str, Any]) -> None:
        """Give a checkpoint of an earlier version today's names."""
        follow_names(checkpoint, self.shells)

    def _plan(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "revision": self.revision, "record": record_of(self.denoiser)}

    # -- optimisation ----------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """None; refuses what cannot be trained before a teacher draws samples for it.

        Raises:
            ConfigurationError: No mixer has anything to train.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            learnt = sum(p.numel() for name, p in self.named_parameters() if name in self._trained)
            check_learns([shell.mixer for shell in self.shells.values()], learnt)
            self.refuse_rest(checkpointing=self.denoiser.is_gradient_checkpointing)
        return super().configure_callbacks()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The current stage's optimiser and learning-rate schedule."""
        stage = self.stage
        return self.optimisers(
            lambda p: self.optimizer(p, stage.lr),
            lr_schedule=stage.lr_schedule,
            warmup_steps=stage.warmup_steps,
            steps=stage.steps,
        )

    def estimated_memory(self) -> MemoryEstimate:
        """Of the stage that needs most."""
        with self.all_learning():
            stages = self.clock.stages
            twice = {stage.objective for stage in stages if stage.is_guided}
            objectives = [stage.objective for stage in stages]
            return run_memory(self, objectives=objectives, optimizer=self.optimizer, twice=twice)

    def on_fit_start(self) -> None:
        """Say what is replaced, and what that saves."""
        rank_zero_info(f"replaced self-attention:\n{drawn_report(self.diffusion).text()}")

    def on_train_start(self) -> None:
        """Let mixers start from the teacher, unless training was begun before; keep the costs beside the run."""
        write_costs(self.trainer, self.diffusion)
        if self._restored:
            return
        if self.init_samples > 0:
            self.initialise_mixers(iter(datamodule_of(self.trainer).train_dataloader()))
        if self.trainer.world_size > 1 and (self.replicate_trained or not is_sharded(self.denoiser)):
            start_alike(self.shells.values(), [self.denoiser.get_parameter(name) for name in self.rest_names])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go on to the stage of this step.

        Raises:
            ConfigurationError: A later or the current stage wants a target, or noise levels, that the data cannot give.
        """
        if "xt" in batch:
            check_trajectories(self.clock.stages)
        super().on_train_batch_start(batch, batch_idx)

    def initialise_mixers(self, batches: Iterator[Mapping[str, Any]]) -> None:
        """Show every mixer what its teacher did on ``init_samples`` samples, site by site to save memory."""
        chosen, count = [], 0
        for batch in batches:
            batch = self.trainer.strategy.batch_to_device(batch) if self._trainer is not None else batch
            chosen.append(self._noised_in_stage(batch, step=0))
            count += len(batch["index"]) * process_count()
            if count >= self.init_samples:
                break
        for shell in self.shells.values():
            with torch.no_grad(), capture_site(shell) as samples:
                for batch in chosen:
                    self.distiller.predict(batch, Mode.TEACHER)
            start_from_teacher(shell.mixer, shell.attention, [gathered(sample) for sample in samples])

    def _noised_in_stage(self, batch: Mapping[str, Any], *, step: int) -> dict[str, Any]:
        dropout = 0.0 if self.stage.is_guided else self.condition_dropout
        return self.noised(batch, step=step, condition_dropout=dropout, timesteps=self.stage.timesteps or Timesteps())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The stage's loss; logs every term and every site's relative L2 error."""
        noised = self._noised_in_stage(batch, step=self.global_step)
        self.draw_ahead(noised, batch_idx)
        if self.stage.objective == "layerwise":
            terms = self.distiller.layerwise(noised)
        else:
            terms = self.distiller.end_to_end(noised, self.stage.terms)
        loss = torch.stack(list(terms.values())).sum()
        self.guard.note(terms, batch)
        tell(self, "loss", loss.detach())
        self.log_dict({"train/loss": loss.detach()} | {f"train/{k}": v.detach() for k, v in terms.items()})
        errors_S = self.distiller.errors_S.sqrt()
        self.recent_errors.update(errors_S)
        names = [*(f"train/relative_l2/{path}" for path in self.shells), "train/stage"]
        log_together(self, names, torch.cat([errors_S, errors_S.new_full((1,), self._stage_index)]))
        return loss
