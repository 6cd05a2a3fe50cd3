"""Tune a sparse set of an image-text model's decoder layers on visual instructions, everything else frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_modules.in_stages import SAVED, InStages
from lightning_modules.lvlm import Evaluation, LVLMModule
from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.measure.announce_memory import announce_memory
from sparsight.common.training.ddp import average_what_is_trained, check_training_may_change
from sparsight.common.training.dropout import seed_dropout
from sparsight.common.training.processes import process_count, summed
from sparsight.common.training.schedule import Retiring
from sparsight.common.training.sharding import is_sharded
from sparsight.common.training.stage_clock import StageClock
from sparsight.lvlm.export.rehearsal import rehearse_export
from sparsight.lvlm.export.write import write_lvlm
from sparsight.lvlm.model.answers import answer_losses
from sparsight.lvlm.model.load import Dtype
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.model.processor import load_processor
from sparsight.lvlm.model.recompute import recompute_layers
from sparsight.lvlm.model.tower import PartNames
from sparsight.lvlm.model.vision_cache import VisionCache
from sparsight.lvlm.surgery.retire import LayerPruning
from sparsight.lvlm.surgery.selection import LayerSelection, Uniform
from sparsight.lvlm.train.cost import StepCost, explain, forward_flops, step_cost
from sparsight.lvlm.train.memory import run_tuning_memory
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import LAYERS, PROJECTOR, Part, make_trainable
from sparsight.lvlm.train.unpruned import UnprunedModel, outputs_of, tuned_weights, unpruned_model


@runtime_checkable
class Packing(Protocol):
    """Data that can put several samples into a row."""

    packing: bool


class SparseLayerTuning(InStages[TuningStage], LVLMModule):
    """Visual instruction tuning of a few decoder layers (Wang et al., "visual region", arXiv 2412.12785).

    With ``prune`` and a PruningSchedule, layers outside them leave while the rest trains on, which heals the gaps.
    Trained parts are held in float32; with another ``dtype`` the frozen rest is in that, which needs mixed precision.

    Args:
        base: Folder or hub id of an image-text model of transformers.
        stages: What is trained, in this order.
        layers: Which decoder layers are tuned; a quarter of them, evenly spread, if not given.
        lora: Tune low-rank adapters on the layers instead of their weights.
        optimizer: Optimiser class and options; every stage makes one with its own learning rates.
        dtype: Precision of what is never trained.
        attn_implementation: transformers' name of the attention kernel; its own choice if not given.
        gradient_checkpointing: Recompute decoder layers in the backward pass to save memory.
        vision_cache_gib: Main memory, in GiB, for what the frozen vision tower answers; an image that comes again is
            not computed again. Images must not be augmented.
        evaluation: How evaluation items are answered.
        prune: Which layers PruningSchedule may remove.
        distill: Weight of the squared difference of the last layer's hidden states to those of a model that has all
            layers, relative to their size, from the first removal on; needs memory for that model.
        distill_from: Folder or hub id of that model: ``base`` before an earlier run took layers out. If not given, it
            is this run's own model as it was, tuned so far, when the first layer left.
        max_skipped_steps: How many steps with losses or gradients that are not finite are left out before the run ends.
        revision: Git revision of a hub model.
        trust_remote_code: Run code that comes with the model.
        parts: Where text model, vision towers and projector of ``base`` are, by qualified name; found if not given.

    Attributes:
        predicted_share: FLOPs of a step of the current stage over those of one that trains all layers.

    Raises:
        ValueError: No stage, the model's parts cannot be told apart, layers that it does not have, or a negative
            number.
    """

    def __init__(
        self,
        base: str,
        stages: Sequence[TuningStage],
        layers: LayerSelection | None = None,
        lora: LoRA | None = None,
        optimizer: Callable[[Any, float], torch.optim.Optimizer] = torch.optim.AdamW,
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        vision_cache_gib: float = 0.0,
        evaluation: Evaluation | None = None,
        prune: LayerPruning | None = None,
        distill: float = 0.0,
        distill_from: str | None = None,
        max_skipped_steps: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
        parts: PartNames | None = None,
    ) -> None:
        if not (0 <= distill < math.inf and 0 <= vision_cache_gib < math.inf):
            raise ValueError(f"distill and vision_cache_gib are 0 or more, got {distill} and {vision_cache_gib}")
        if distill_from is not None and distill == 0:
            raise ValueError(f"distill_from names {distill_from}, but distill, the weight, is 0: set it, e.g. to 1.0")
        rule = layers or Uniform(ratio=0.25)
        selection = rule.record()  # scores of layers that are no numbers are refused before weights are loaded
        super().__init__(
            base=base,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            evaluation=evaluation,
            prune=prune,
            max_skipped_steps=max_skipped_steps,
            parts=parts,
        )
        self.keep_hyperparameters()
        self.clock = StageClock(stages)
        self.layers, self.selection = rule.select(self.depth), selection
        self.save_hyperparameters({"selected_layers": list(self.layers)})
        self.distill, self.distill_from = distill, distill_from
        self.distill_options = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
        self.unpruned: UnprunedModel | None = None  # made when training begins
        self.adapters = lora is not None
        wanted = {part for stage in stages for part in stage.train}
        self.trained = make_trainable(self.model, self.parts, layers=self.layers, lora=lora, wanted=wanted)
        self.tuned_layers = list(self.layers) if LAYERS in self.trained else []
        self.optimizer = optimizer
        self.vision_cache = VisionCache(self.model, self.parts, gib=vision_cache_gib) if vision_cache_gib > 0 else None
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_layers(self.model)
        self._active = list(self.layers)
        self._learned_parts: set[Part] = set()
        self._learned_layers: set[int] = set()
        self._announced = False
        self.predicted_share: float | None = None
        self._require_gradients()

    # -- state -----------------------------------------------------------------------------------------------------

    def trained_names(self) -> set[str]:
        """Names of the parameters of all parts that any stage trains."""
        return {f"model.{name}" for part in self.trained.values() for name in part}

    def untrained(self) -> str | None:
        """The parts that its stages train, if no optimiser step changed any and no layer has left."""
        if self._learned_parts or self.retired.indices:
            return None
        return f"{self.base} is untuned: no optimiser step has changed its {' and '.join(self.trained)}"

    def trained_so_far(self) -> list[Part]:
        """Parts that optimiser steps were taken on."""
        return [part for part in self.trained if part in self._learned_parts]

    def learned_layers(self) -> list[int]:
        """Decoder layers that optimiser steps were taken on."""
        return sorted(self._learned_layers)

    def write_export(self, folder: Path, name: str, *, fp16: bool, **facts: Any) -> None:
        """Write a transformers folder, in the precision of the frozen part; see :func:`write_lvlm`."""
        write_lvlm(self, folder, name, **facts)

    def rehearse_export(self, processor: Any) -> None:
        """Try what an export needs besides trained weights; see :func:`sparsight.lvlm.export.rehearsal`."""
        rehearse_export(self, processor or load_processor(self.base, **self.source))

    def train(self, mode: bool = True) -> SparseLayerTuning:
        """What is frozen stays in eval mode."""
        super().train(mode)
        self.model.eval()
        if mode:
            for index in self._active if LAYERS in self.stage.train else ():
                self.parts.layers[index].train()
            if self.gradient_checkpointing:
                for layer in self.parts.layers:
                    layer.training = True  # transformers recomputes layers in train mode only; their insides stay as is
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stage, the base model's identity and the layers that are tuned."""
        checkpoint[SAVED] = {
            "base": self.base,
            "revision": self.revision,
            "base_hash": self.base_hash,
            "layers": list(self.layers),
            "active": list(self._active),
            "learned": {"parts": self.trained_so_far(), "layers": self.learned_layers()},
            "selection": self.selection,
            "retired": list(self.retired.indices),
            "removals": list(self.removals),
            "tuned_before_removal": None if self.unpruned is None else self.unpruned.taken,
        }
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the stage; refuse a checkpoint of another base model or of other layers.

        Raises:
            ValueError: Base model or layers differ.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(SAVED, {})
        if saved.get("base_hash") != self.base_hash:
            raise ValueError(
                f"the checkpoint was made from another model than {self.base!r}: weights hash "
                f"{str(saved.get('base_hash'))[:12]}, not {self.base_hash[:12]}"
            )
        if saved["layers"] != self.layers:
            raise ValueError(f"the checkpoint tuned layers {saved['layers']}, the configuration selects {self.layers}")
        self.take_stage(checkpoint)
        self._active = saved["active"]
        learned = saved.get("learned") or self._learned_by_plan()
        self._learned_parts, self._learned_layers = set(learned["parts"]), set(learned["layers"])
        self.selection = saved.get("selection", self.selection)  # not in checkpoints of earlier versions
        self.retired.set(saved["retired"])
        self.removals = saved.get("removals", [])
        if self.unpruned is not None and saved.get("tuned_before_removal") is not None:
            self.unpruned.take(saved["tuned_before_removal"])
        self._require_gradients()

    def _require_gradients(self) -> None:
        learning = set(self._active) - set(self.retired.indices)
        active = tuple(f"{self.parts.layer_name(index)}." for index in learning)
        for part, names in self.trained.items():
            for name in names:
                on = part in self.stage.train and (part != LAYERS or name.startswith(active))
                parameter = self.model.get_parameter(name).requires_grad_(on)
                if not on:
                    parameter.grad = None

    def _parameters_of(self, part: Part) -> list[torch.nn.Parameter]:
        return [self.model.get_parameter(name) for name in self.trained[part]]  # FSDP2 puts others in their places

    def retire(self, names: Sequence[str]) -> None:
        """Pass these layers by; those that were tuned stop learning, for whose gradients DDP would wait."""
        before = set(self.retired.indices)
        super().retire(names)
        first = bool(names) and not before and self.global_step > 0  # at step 0 nothing has been tuned
        if first and self.unpruned is not None and self.distill_from is None:
            self.unpruned.take(tuned_weights(self.model, [name for part in self.trained.values() for name in part]))
        if set(self.tuned_layers) & (set(self.retired.indices) - before):
            self._require_gradients()
            average_what_is_trained(self.trainer)

    def focus(self, layers: Collection[int]) -> bool:
        """Train these of the chosen layers alone from now on; the optimiser forgets what it knew of the others.

        Returns:
            Whether that changes anything.

        Raises:
            ValueError: A layer is not among the chosen.
        """
        if not set(layers) <= set(self.layers):
            raise ValueError(f"layers {sorted(set(layers) - set(self.layers))} are not among the chosen {self.layers}")
        if sorted(layers) == self._active:
            return False
        self._active = sorted(layers)
        self._require_gradients()
        self.train()
        average_what_is_trained(self.trainer)
        for optimizer in self.trainer.optimizers:
            for parameter in [p for p in optimizer.state if not p.requires_grad]:
                del optimizer.state[parameter]
        return True

    # -- optimisation ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse what would fail while it trains.

        Raises:
            ConfigurationError: Frozen and trained weights differ in precision, and nothing brings them together; the
                stages train different parts under a strategy that cannot; layers are to be scored, or hidden states
                compared, on packed rows; or there is no model to compare them with.
        """
        super().setup(stage)
        if stage != "fit":
            return
        if self.prune is not None and not any(isinstance(c, Retiring) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            rank_zero_warn("`prune` is set, but no callback PruningSchedule: no layer will leave")
        data = datamodule_of(self.trainer)
        if isinstance(data, Packing) and data.packing and (self.prune is not None or self.distill > 0):
            raise ConfigurationError(
                "prune scores layers, and distill compares hidden states, on training batches with a sample a row: set "
                "data.packing to false"
            )
        if len({frozenset(stage.train) for stage in self.clock.stages}) > 1:
            check_training_may_change(self.trainer)
        if self.frozen_dtype != torch.float32 and self.trainer.precision in ("32", "32-true", 32):
            raise ConfigurationError(
                f"dtype {self.frozen_dtype} of the frozen parts needs mixed precision, as trained parts are in "
                "float32: set trainer.precision to bf16-mixed, or dtype to float32"
            )
        if self.distill > 0 and self.unpruned is None:
            self.unpruned = unpruned_model(
                self.distill_from, base=self.base, student=self.model, dtype=self.frozen_dtype, **self.distill_options
            )
            if self.prune is None and not self._heals():
                raise ConfigurationError(
                    "distill heals the gaps of removed layers, but none has left or leaves: give `prune`, or in "
                    "distill_from a model that has more layers"
                )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The current stage's optimiser, with a learning rate for every part, and its schedule."""
        stage = self.stage
        groups = [
            {"params": self._parameters_of(part), "lr": stage.lr_of(part), "name": part}
            for part in (LAYERS, PROJECTOR)
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
        """Refuse pictures that the model cannot read; say what is trained, and what memory that takes."""
        super().on_fit_start()
        total = sum(p.numel() for p in self.model.parameters())
        lines = [f"decoder layers of {self.parts.layers_name}: {len(self.parts.layers)}, chosen {self.layers}"]
        for part in self.trained:
            count = sum(p.numel() for p in self._parameters_of(part))
            kind = " (low-rank adapters)" if part == LAYERS and self.adapters else ""
            lines.append(f"trained {part}{kind}: {count:,} parameters, {count / total:.1%} of the model")
        rank_zero_info("\n".join(lines))
        announce_memory(self.trainer, lambda: run_tuning_memory(self))

    def on_train_start(self) -> None:
        """What is trained goes into train mode: models come in eval mode, and Lightning leaves modes as they are."""
        self.train()

    def on_stage_start(self) -> None:
        """Let the stage's parts learn, and no others."""
        self._require_gradients()
        self.train()
        average_what_is_trained(self.trainer)
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
                lowest=min(self._layers_of_stage(), default=self.depth),
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

        with self.trainer.precision_plugin.forward_context(), self._cached_vision(batch):
            if self.vision_cache is not None:
                with torch.no_grad():
                    run()
            flops = forward_flops(self.model, self.parts, run)
        options = {
            "projector": PROJECTOR in self.stage.train,
            "adapters": self.adapters,
            "checkpointing": self.gradient_checkpointing,
        }
        chosen = step_cost(flops, layers=self._layers_of_stage(), **options)
        return chosen, step_cost(flops, layers=range(self.depth), **options)

    def _layers_of_stage(self) -> list[int]:
        return self.layers if LAYERS in self.stage.train else []

    def _learned_by_plan(self) -> dict[str, Any]:
        """What stages and steps say of a checkpoint of an earlier version."""
        done = zip(self.clock.stages, self.clock.done(self.steps_taken), strict=True)
        parts = {part for stage, steps in done if steps > 0 for part in stage.train}
        return {"parts": parts, "layers": self.layers if LAYERS in parts else []}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note what learns, at a learning rate that is not 0.

        Raises:
            NonFiniteError: A loss or gradient is not finite on some process, and no step may be left out any more.
        """
        super().on_before_optimizer_step(optimizer)
        parts = {group["name"] for group in optimizer.param_groups if group["lr"] > 0} if self.took_step else set()
        self._learned_parts |= parts
        if LAYERS in parts:
            self._learned_layers |= set(self._active) - set(self.retired.indices)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the answer tokens of the whole batch, over all processes."""
        with self._cached_vision(batch), self._last_hidden_states() as hidden:
            losses, _ = answer_losses(self.model, batch["inputs"], batch["labels"])
        everywhere = summed(torch.tensor(float(losses.numel()), device=losses.device))
        self.log("train/loss", summed(losses.sum()) / everywhere, prog_bar=True)
        self.log("train/answer_tokens", everywhere)
        loss = losses.sum() * process_count() / everywhere  # DDP averages over processes
        if not any(batch["image_keys"]) and PROJECTOR in self.stage.train and not is_sharded(self.model):
            # without images nothing reaches the projector, for whose gradients DDP would wait
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self._parameters_of(PROJECTOR))
        if not self._heals():
            self.guard.note({"answers": loss}, batch)
            return loss
        assert self.unpruned is not None
        tower = self.unpruned.shared_tower
        with nullcontext() if tower is None else self._cached_vision(batch, tower=tower):
            difference = self.unpruned.difference(batch["inputs"], hidden[-1])
        self.log("train/hidden_difference", difference.detach(), sync_dist=True)
        self.guard.note({"answers": loss, "hidden_difference": difference}, batch)
        return loss + self.distill * difference

    def _heals(self) -> bool:
        """Whether there are fewer layers than in the model that hidden states are compared with."""
        return self.unpruned is not None and self.depth - len(self.retired.indices) < self.unpruned.depth

    def _cached_vision(
        self, batch: Mapping[str, Any], *, tower: torch.nn.Module | None = None
    ) -> AbstractContextManager[None]:
        if self.vision_cache is None:
            return nullcontext()
        return self.vision_cache.serving(batch["image_keys"], tower=tower)

    def _last_hidden_states(self) -> AbstractContextManager[list[Tensor]]:
        return outputs_of(self.parts.layers[-1]) if self._heals() else nullcontext([])
