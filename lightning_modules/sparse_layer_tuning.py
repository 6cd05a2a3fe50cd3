"""Tune a sparse set of an image-text model's decoder layers on visual instructions, everything else frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import NoneType
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from blocks.tokens import Edit
from lightning_modules.answering import Evaluation
from lightning_modules.tuned_layers import TunedLayers
from sparsight.common.errors import need_kind
from sparsight.common.measure.announce_memory import announce_memory
from sparsight.common.moved import takes_former_options
from sparsight.common.training.dropout import seed_dropout
from sparsight.common.training.processes import process_count, summed
from sparsight.common.training.progress.tell import tell
from sparsight.common.training.sharding import is_sharded
from sparsight.lvlm.model.answer_losses import answer_losses, answers
from sparsight.lvlm.model.load import ModelLoading
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.model.tower import PartNames
from sparsight.lvlm.model.vision_cache import VisionCache
from sparsight.lvlm.surgery.retire import LayerPruning
from sparsight.lvlm.surgery.selection import LayerSelection, Uniform
from sparsight.lvlm.train.checks import check_cached_tower, check_tuning
from sparsight.lvlm.train.compute import TuningCompute
from sparsight.lvlm.train.cost import StepCost, explain, forward_flops, step_cost
from sparsight.lvlm.train.fused_loss import FusedLoss
from sparsight.lvlm.train.healing import Healer, Healing
from sparsight.lvlm.train.memory import run_tuning_memory
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import LAYERS, METHODS, PROJECTOR


@takes_former_options
class SparseLayerTuning(TunedLayers):
    """Visual instruction tuning of a few decoder layers (Wang et al., "visual region", arXiv 2412.12785).

    With ``prune`` and a PruningSchedule, layers outside them leave while the rest trains on, which heals the gaps.
    Trained parts are held in float32; with another
    ``loading.dtype`` the frozen rest is in that, which needs mixed precision.

    Args:
        base: Folder or hub id of an image-text model of transformers.
        stages: What is trained, in this order.
        layers: Which decoder layers are tuned; a quarter of them, evenly spread, if not given.
        lora: Tune low-rank adapters on the layers instead of their weights.
        optimizer: Optimiser class and options; every stage makes one with its own learning rates.
        compute: What spares memory or time.
        evaluation: How evaluation items are answered.
        prune: Which layers PruningSchedule may remove.
        healing: How the model is drawn to one that has all layers, from the first removal on.
        max_skipped_steps: How many steps with losses or gradients that are not finite are left out before the run ends.
        loading: How ``base`` is read; its ``dtype`` is that of what is never trained.
        parts: Where text model, vision towers and projector of ``base`` are, by qualified name; found if not given.
        recipe: Methods that work while the model trains and answers; an export carries them beside the model.

    Attributes:
        predicted_share: FLOPs of a step of the current stage over those of one that trains all layers.

    Raises:
        ValueError: No stage, the model's parts cannot be told apart, layers that it does not have, a negative
            number, or a recipe that cannot work in the model, or not with ``prune``, ``healing``, or what ``loading``
            and ``compute`` ask for; a package is missing that these need, or logits that a fused loss does not make; or
            a stage that trains methods without weights.
    """

    def __init__(
        self,
        base: str,
        stages: Sequence[TuningStage],
        layers: LayerSelection | None = None,
        lora: LoRA | None = None,
        optimizer: Callable[[Any, float], torch.optim.Optimizer] = torch.optim.AdamW,
        compute: TuningCompute = TuningCompute(),
        evaluation: Evaluation | None = None,
        prune: LayerPruning | None = None,
        healing: Healing = Healing(),
        max_skipped_steps: int = 0,
        loading: ModelLoading = ModelLoading(),
        parts: PartNames | None = None,
        recipe: Sequence[Edit] | None = None,
    ) -> None:
        if recipe and compute.gradient_checkpointing:
            raise ValueError(
                "under a recipe layers cannot be computed again: set compute.gradient_checkpointing to false"
            )
        if recipe and healing.any:
            names = " and ".join(f"healing.{name}" for name in healing.named)
            raise ValueError(f"under a recipe hidden states are those of other tokens: set {names} to 0")
        if compute.fused_loss is not None and (recipe or healing.logits > 0):
            what = "a recipe" if recipe else "healing.logits"
            raise ValueError(f"compute.fused_loss makes no logits, which {what} needs: set one of them to null or 0")
        check_cached_tower(recipe or [], compute.vision_cache_gib)
        self._fused = None if compute.fused_loss is None else FusedLoss(compute.fused_loss)
        need_kind("lora", lora, (LoRA, NoneType), "a LoRA of sparsight.lvlm.model.lora, or None")
        rule = layers or Uniform(ratio=0.25)
        rule.record()  # scores of layers that are no numbers are refused before weights are loaded
        super().__init__(
            base=base,
            loading=loading,
            parts=parts,
            evaluation=evaluation,
            prune=prune,
            max_skipped_steps=max_skipped_steps,
            recipe=recipe,
        )
        self.keep_hyperparameters()
        self.healer = Healer(healing, loading)
        self.choose(stages, rule, lora=lora, gradient_checkpointing=compute.gradient_checkpointing)
        self.optimizer = optimizer
        gib = compute.vision_cache_gib
        self.vision_cache = VisionCache(self.model, self.parts, gib=gib) if gib > 0 else None
        self._announced = False
        self.predicted_share: float | None = None

    # -- optimisation ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse what would fail while it trains.

        Raises:
            ConfigurationError: As ``check_tuning``, ``Healer.begin`` and ``FusedLoss.check_place``.
        """
        super().setup(stage)
        if stage != "fit":
            return
        if self._fused is not None:
            self._fused.check_place(self.trainer)
        prunes = self.prune is not None
        check_tuning(
            self.trainer,
            self.clock.stages,
            frozen=self.frozen_dtype,
            kernel=self.model.config.get_text_config(decoder=True)._attn_implementation,
            loses_layers=prunes,
            heals=self.healer.healing.any,
        )
        self.healer.begin(
            self.model, base=self.base, dtype=self.frozen_dtype, loses_layers=prunes, depth=self._depth_now
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The current stage's optimiser, with a learning rate for every part, and its schedule."""
        stage = self.stage
        groups = [
            {"params": self._parameters_of(part), "lr": stage.lr_of(part), "name": part}
            for part in (LAYERS, PROJECTOR, METHODS)
            if part in stage.train
        ]
        return self.optimisers(
            lambda p: self.optimizer(p, stage.lr),
            lr_schedule=stage.lr_schedule,
            warmup_steps=round(stage.warmup_share * stage.steps),
            steps=stage.steps,
            groups=groups,
        )

    def on_fit_start(self) -> None:
        """Refuse images and a loss that the model cannot have; say what is trained, and what memory that takes."""
        super().on_fit_start()
        if self._fused is not None:
            with self.trainer.precision_plugin.forward_context():
                self._fused.check_model(self.model)
        total = sum(p.numel() for p in self.model.parameters())
        lines = [f"decoder layers of {self.parts.layers_name}: {len(self.parts.layers)}, chosen {self.layers}"]
        for part in self.trained_parts:
            count = sum(p.numel() for p in self._parameters_of(part))
            kind = " (low-rank adapters)" if part == LAYERS and self.adapters else ""
            lines.append(f"trained {part}{kind}: {count:,} parameters, {count / total:.1%} of the model")
        rank_zero_info("\n".join(lines))
        self.estimated_bytes = announce_memory(self.trainer, lambda: run_tuning_memory(self))

    def on_train_start(self) -> None:
        """What is trained goes into train mode: models come in eval mode, and Lightning leaves modes as they are."""
        super().on_train_start()
        self.train()

    def on_stage_start(self) -> None:
        """Let the stage's parts learn, and say anew what the choice of layers saves."""
        super().on_stage_start()
        self._announced = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go on to the stage of this step; its first batch tells what the choice of layers saves."""
        super().on_train_batch_start(batch, batch_idx)
        if not self._announced:
            self._announced = True
            chosen, everything = self.predicted_costs(batch)
            self.predicted_share = chosen.total / everything.total
            told = explain(
                chosen,
                everything,
                projector=PROJECTOR in self.stage.train,
                lowest=self._lowest(),
                cached=self.vision_cache is not None,
            )
            rank_zero_info(f"{self.stage_number}: {told}")
        seed_dropout(self.global_step, batch["index"])

    def predicted_costs(self, batch: Mapping[str, Any]) -> tuple[StepCost, StepCost]:
        """FLOPs of a step of this stage, and of one that trains all layers, counted on a batch.

        With a vision cache these are steps whose images have come before.
        """

        def run() -> None:
            answer_losses(self.model, batch["inputs"], batch["labels"])

        with self.trainer.precision_plugin.forward_context(), self._cached_vision(batch), self.edited(learns=True):
            if self.vision_cache is not None:
                with torch.no_grad():
                    run()
            flops = forward_flops(self.model, self.parts, run)
        options = {
            "projector": PROJECTOR in self.stage.train,
            "adapters": self.adapters,
            "checkpointing": self.gradient_checkpointing,
        }
        chosen = step_cost(flops, layers=self._layers_of_stage(), lowest=self._lowest(), **options)
        return chosen, step_cost(flops, layers=range(self.depth), **options)

    def _layers_of_stage(self) -> list[int]:
        return self.layers if LAYERS in self.stage.train else []

    def _lowest(self) -> int:
        """The lowest layer in which anything is trained: a weight of its own, or of a method."""
        learning = {} if self.recipe is None or METHODS not in self.stage.train else self.recipe.weighted
        found = [layer for each in learning.values() for layer in range(self.depth) if each.at(layer, self.depth)]
        return min([*self._layers_of_stage(), *found], default=self.depth)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note what learns, at a learning rate that is not 0.

        Raises:
            NonFiniteError: A loss or gradient is not finite on some process, and no step may be left out any more.
        """
        super().on_before_optimizer_step(optimizer)
        if self.took_step:
            self.learned.note(optimizer, layers=self._learning_layers())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the answer tokens of the whole batch, over all processes."""
        watching = self.healer.watching(self.parts, self.retired.indices)
        with self._cached_vision(batch), self.edited(learns=True), watching as watched:
            total, count, logits = self._answers(batch)
            taught = self._taught(batch)
        everywhere = summed(total.new_full((), float(count), dtype=torch.float32))
        mean = summed(total) / everywhere
        self.log("train/loss", mean)
        tell(self, "loss", mean)
        self.log("train/answer_tokens", everywhere)
        loss = total * process_count() / everywhere  # DDP averages over processes
        if not any(batch["image_keys"]) and PROJECTOR in self.stage.train and not is_sharded(self.model):
            # without images nothing reaches the projector, for whose gradients DDP would wait
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self._parameters_of(PROJECTOR))
        if METHODS in self.stage.train:  # a step may pass some weights by, for whose gradients DDP would wait
            loss = loss + sum(taught.values()) + 0.0 * sum(p.sum() for p in self._parameters_of(METHODS))
        if not self.healer.is_on(self._depth_now):
            self.guard.note({"answers": loss, **taught}, batch)
            return loss
        assert self.unpruned is not None
        tower = self.unpruned.shared_tower
        with nullcontext() if tower is None else self._cached_vision(batch, tower=tower):
            terms = self.healer.terms(batch["inputs"], batch["labels"], watched=watched, logits_NV=logits)
        for name, (_, term) in terms.items():
            self.log(f"train/{name}", term.detach(), sync_dist=True)
        self.guard.note({"answers": loss} | {name: term for name, (_, term) in terms.items()}, batch)
        return loss + sum(weight * term for weight, term in terms.values())

    def _answers(self, batch: Mapping[str, Any]) -> tuple[Tensor, int, Tensor | None]:
        """Summed losses of the answer tokens, their number, and logits (N, V) unless a fused loss passes them by."""
        if self._fused is not None:
            return *self._fused.total(self.model, batch["inputs"], batch["labels"]), None
        losses, logits, _ = answers(self.model, batch["inputs"], batch["labels"])
        return losses.sum(), len(losses), logits

    def _taught(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What methods with weights learn beside the answers, as losses by their names, in a stage that trains them."""
        found: dict[str, Tensor] = {}
        for name, method in {} if self.recipe is None else self.recipe.weighted.items():
            own = [method.loss()]  # also where nothing asks for it, so that it is of no earlier pass
            if METHODS in self.stage.train:
                own.append(method.lesson(lambda: answers(self.model, batch["inputs"], batch["labels"])))
                told = [loss for loss in own if loss is not None]
                if told:
                    found[name] = torch.stack(told).sum()
                    self.log(f"train/{name}", found[name].detach(), sync_dist=True)
        return found

    @property
    def _depth_now(self) -> int:
        return self.depth - len(self.retired.indices)

    def _cached_vision(
        self, batch: Mapping[str, Any], *, tower: torch.nn.Module | None = None
    ) -> AbstractContextManager[None]:
        if self.vision_cache is None:
            return nullcontext()
        return self.vision_cache.serving(batch["image_keys"], tower=tower)
