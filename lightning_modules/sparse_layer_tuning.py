"""Tune a sparse set of an image-text model's decoder layers on visual instructions, everything else frozen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_modules.lvlm import Evaluation, LVLMModule
from sparsight.ddp import average_what_is_trained, check_training_may_change
from sparsight.distill.processes import process_count, summed
from sparsight.hyperparameters import ConfigurationError
from sparsight.lvlm.answers import answer_losses
from sparsight.lvlm.cost import explain, forward_flops, step_cost
from sparsight.lvlm.load import Dtype
from sparsight.lvlm.recompute import recompute_layers
from sparsight.lvlm.retire import LayerPruning
from sparsight.lvlm.selection import LayerSelection, Uniform
from sparsight.lvlm.stages import TuningStage
from sparsight.lvlm.trained import LAYERS, PROJECTOR, LoRA, Part, add_lora, trained_parameters
from sparsight.lvlm.unpruned import UnprunedModel, outputs_of
from sparsight.lvlm.vision_cache import VisionCache
from sparsight.stage_clock import StageClock


class SparseLayerTuning(LVLMModule):
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
        distill: Weight of the squared difference of the last layer's hidden states to those of the model before any
            layer left, relative to their size; needs memory for a copy of the model.
        revision: Git revision of a hub model.
        trust_remote_code: Run code that comes with the model.

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
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if distill < 0 or vision_cache_gib < 0:
            raise ValueError(f"distill and vision_cache_gib are 0 or more, got {distill} and {vision_cache_gib}")
        super().__init__(
            base=base,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            evaluation=evaluation,
            prune=prune,
        )
        self.keep_hyperparameters()
        self.clock = StageClock(stages)
        self.layers = (layers or Uniform(ratio=0.25)).select(self.depth)
        self.save_hyperparameters({"selected_layers": list(self.layers)})
        self.unpruned = UnprunedModel(self.model, weight=distill) if distill > 0 else None
        self.adapters = lora is not None
        if lora is not None:
            add_lora(self.model, self.parts, self.layers, lora)
        self.model.requires_grad_(False)
        wanted = {part for stage in stages for part in stage.train}
        found = trained_parameters(self.model, self.parts, layers=self.layers, adapters=self.adapters)
        self.trained = {part: list(found[part]) for part in found if part in wanted}
        for parameter in (p for part in self.trained for p in found[part].values()):
            parameter.data = parameter.data.float()
        self.optimizer = optimizer
        self.vision_cache = VisionCache(self.model, self.parts, gib=vision_cache_gib) if vision_cache_gib > 0 else None
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_layers(self.model)
        self._active = list(self.layers)
        self._stage_index = 0
        self._announced = False
        self._require_gradients()

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> TuningStage:
        """The stage that is being trained."""
        return self.clock.stages[self._stage_index]

    def trained_names(self) -> set[str]:
        """Names of the parameters of all parts that any stage trains."""
        return {f"model.{name}" for part in self.trained.values() for name in part}

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
        checkpoint["sparsight"] = {
            "stage": self._stage_index,
            "base": self.base,
            "revision": self.revision,
            "base_hash": self.base_hash,
            "layers": list(self.layers),
            "active": list(self._active),
            "retired": list(self.retired.indices),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the stage; refuse a checkpoint of another base model or of other layers.

        Raises:
            ValueError: Base model or layers differ.
        """
        saved = checkpoint.get("sparsight", {})
        if saved.get("base_hash") != self.base_hash:
            raise ValueError(
                f"the checkpoint was made from another model than {self.base!r}: weights hash "
                f"{str(saved.get('base_hash'))[:12]}, not {self.base_hash[:12]}"
            )
        if saved["layers"] != self.layers:
            raise ValueError(f"the checkpoint tuned layers {saved['layers']}, the configuration selects {self.layers}")
        self._stage_index = saved["stage"]
        self._active = saved["active"]
        self.retired.set(saved["retired"])
        self._require_gradients()

    def _require_gradients(self) -> None:
        active = tuple(f"{self.parts.layer_name(index)}." for index in self._active)
        for part, names in self.trained.items():
            for name in names:
                on = part in self.stage.train and (part != LAYERS or name.startswith(active))
                self.model.get_parameter(name).requires_grad_(on)

    def _parameters_of(self, part: Part) -> list[torch.nn.Parameter]:
        return [self.model.get_parameter(name) for name in self.trained[part]]  # FSDP2 puts others in their places

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
                parameter.grad = None
                del optimizer.state[parameter]
        return True

    # -- optimisation ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """The stages say how long training is, unless the trainer stops earlier.

        Raises:
            ConfigurationError: Frozen and trained weights differ in precision, and nothing brings them together; the
                stages train different parts under a strategy that cannot; or layers are to be scored on packed rows.
        """
        super().setup(stage)
        if stage != "fit":
            return
        if self.prune is not None and not any(type(c).__name__ == "PruningSchedule" for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            rank_zero_warn("`prune` is set, but no callback PruningSchedule: no layer will leave")
        if self.prune is not None and getattr(getattr(self.trainer, "datamodule", None), "packing", False):
            raise ConfigurationError("prune scores layers on training batches, which must not be packed: data.packing")
        self.end_after(self.clock.total)
        if len({frozenset(stage.train) for stage in self.clock.stages}) > 1:
            check_training_may_change(self.trainer)
        if self.frozen_dtype != torch.float32 and self.trainer.precision in ("32", "32-true", 32):
            raise ConfigurationError(
                f"dtype {self.frozen_dtype} of the frozen parts needs mixed precision, as trained parts are in "
                "float32: set trainer.precision to bf16-mixed, or dtype to float32"
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
        """Say what is trained."""
        total = sum(p.numel() for p in self.model.parameters())
        lines = [f"decoder layers of {self.parts.layers_name}: {len(self.parts.layers)}, chosen {self.layers}"]
        for part in self.trained:
            count = sum(p.numel() for p in self._parameters_of(part))
            kind = " (low-rank adapters)" if part == LAYERS and self.adapters else ""
            lines.append(f"trained {part}{kind}: {count:,} parameters, {count / total:.1%} of the model")
        rank_zero_info("\n".join(lines))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A new stage begins with a fresh optimiser; the first batch tells what the choice of layers saves."""
        index = self.clock.index(self.global_step)
        if index != self._stage_index:
            self._stage_index = index
            self._require_gradients()
            self.train()
            average_what_is_trained(self.trainer)
            self.trainer.strategy.setup_optimizers(self.trainer)
            self._announced = False
        if not self._announced:
            self._announced = True
            rank_zero_info(f"stage {index + 1} of {len(self.clock.stages)}: {self.predicted_cost(batch)}")

    def predicted_cost(self, batch: Mapping[str, Any]) -> str:
        """What a step costs against one that trains all layers, in words, counted on a batch."""
        with self.trainer.precision_plugin.forward_context():
            flops = forward_flops(
                self.model, self.parts, lambda: answer_losses(self.model, batch["inputs"], batch["labels"])
            )
        projector, layers = PROJECTOR in self.stage.train, self.layers if LAYERS in self.stage.train else []
        options = {"projector": projector, "adapters": self.adapters, "checkpointing": self.gradient_checkpointing}
        return explain(
            step_cost(flops, layers=layers, **options),
            step_cost(flops, layers=range(len(flops.layers)), **options),
            projector=projector,
            lowest=min(layers, default=len(flops.layers)),
        )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the answer tokens of the whole batch, over all processes."""
        with self._cached_vision(batch), self._last_hidden_states() as hidden:
            losses, _ = answer_losses(self.model, batch["inputs"], batch["labels"])
        everywhere = summed(torch.tensor(float(losses.numel()), device=losses.device))
        self.log("train/loss", summed(losses.sum()) / everywhere, prog_bar=True)
        self.log("train/answer_tokens", everywhere)
        loss = losses.sum() * process_count() / everywhere  # DDP averages over processes
        if not any(batch["image_keys"]) and PROJECTOR in self.stage.train:
            # without images nothing reaches the projector, for whose gradients DDP would wait
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self._parameters_of(PROJECTOR))
        if self.unpruned is None:
            return loss
        difference = self.unpruned.difference(batch["inputs"], hidden[-1])
        self.log("train/hidden_difference", difference.detach(), sync_dist=True)
        return loss + self.unpruned.weight * difference

    def _cached_vision(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        return nullcontext() if self.vision_cache is None else self.vision_cache.serving(batch["image_keys"])

    def _last_hidden_states(self) -> AbstractContextManager[list[Tensor]]:
        return nullcontext([]) if self.unpruned is None else outputs_of(self.parts.layers[-1])
