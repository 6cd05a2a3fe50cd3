"""An image-text model of whose decoder layers a few learn, with its projector: which, which have, and what is kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_modules.in_stages import SAVED, InStages
from lightning_modules.lvlm import LVLMModule
from sparsight.common.hashes import short_hash
from sparsight.common.training.ddp import average_what_is_trained
from sparsight.common.training.processes import alike, average_gradients
from sparsight.common.training.sharding import is_sharded
from sparsight.common.training.stage_clock import StageClock
from sparsight.lvlm.export.rehearsal import rehearse_export
from sparsight.lvlm.export.write import write_lvlm
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.model.processor import load_processor
from sparsight.lvlm.model.recompute import recompute_layers
from sparsight.lvlm.surgery.selection import LayerSelection
from sparsight.lvlm.train.healing import Healer
from sparsight.lvlm.train.learned import Learned, learned_by_plan
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import LAYERS, METHODS, Part, make_trainable, require_gradients
from sparsight.lvlm.train.unpruned import UnprunedModel


class TunedLayers(InStages[TuningStage], LVLMModule):
    """Base of modules that tune chosen decoder layers; a subclass loads the model, chooses, and says how they learn.

    Attributes:
        layers: The chosen decoder layers.
        selection: How they were chosen, as plain data.
        trained: Names of the model's parameters of each part that any stage trains.
        trains_methods: Whether any stage trains weights of the recipe's methods.
        adapters: Whether low-rank adapters are tuned in place of the layers' weights.
        gradient_checkpointing: Whether decoder layers are recomputed in the backward pass.
        learned: What optimiser steps have changed.
        healer: Compares the model with its teacher when layers leave.
    """

    layers: list[int]
    selection: dict[str, Any]
    healer: Healer

    def choose(
        self, stages: Sequence[TuningStage], rule: LayerSelection, *, lora: LoRA | None, gradient_checkpointing: bool
    ) -> None:
        """Choose layers of the loaded model, and let what the first stage trains learn.

        Args:
            stages: What is trained, in this order.
            rule: Chooses.
            lora: Adapters in place of the layers' weights.
            gradient_checkpointing: Recompute decoder layers in the backward pass.

        Raises:
            ValueError: A stage trains weights of methods, and the recipe has none; or the other way round.
        """
        self.clock = StageClock(stages)
        self.layers, self.selection = rule.select(self.depth), rule.record()
        self.save_hyperparameters({"selected_layers": list(self.layers)})
        self.adapters = lora is not None
        wanted = {part for stage in stages for part in stage.train}
        self.trains_methods = METHODS in wanted
        self._check_methods()
        self.trained = make_trainable(self.model, self.parts, layers=self.layers, lora=lora, wanted=wanted)
        self.quantise({name for names in self.trained.values() for name in names})
        self.tuned_layers = list(self.layers) if LAYERS in self.trained else []
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            recompute_layers(self.model)
        self._active = list(self.layers)
        self.learned = Learned()
        self._require_gradients()

    def _check_methods(self) -> None:
        held = {} if self.recipe is None else self.recipe.weighted
        if self.trains_methods and not held:
            raise ValueError("a stage trains methods, and none of the recipe has weights: leave methods out of `train`")
        fresh = [name for name, method in held.items() if method.trained is None]
        if fresh and not self.trains_methods:
            raise ValueError(
                f"{', '.join(fresh)} of the recipe would keep weights that were never trained: put methods into the "
                "`train` of a stage, or give `trained`"
            )

    @property
    def trained_parts(self) -> list[Part]:
        """Parts that any stage trains."""
        return [*self.trained, *([METHODS] if self.trains_methods else [])]

    @property
    def unpruned(self) -> UnprunedModel | None:
        """The model that hidden states are compared with; none before training begins, or if they are not."""
        return self.healer.unpruned

    def trained_names(self) -> set[str]:
        """Names of the parameters of all parts that any stage trains."""
        names = {f"model.{name}" for part in self.trained.values() for name in part}
        held = self.method_weights.state_dict() if self.method_weights is not None and self.trains_methods else {}
        return names | {f"method_weights.{name}" for name in held}

    def untrained(self) -> str | None:
        """The parts that its stages train, if no optimiser step changed any and no layer has left."""
        if self.learned.parts or self.retired.indices:
            return None
        return f"{self.base} is as it was loaded: no optimiser step has changed its {' and '.join(self.trained_parts)}"

    def trained_so_far(self) -> list[Part]:
        """Parts that optimiser steps were taken on."""
        return self.learned.record(self.trained_parts)["parts"]

    def learned_layers(self) -> list[int]:
        """Decoder layers that optimiser steps were taken on."""
        return sorted(self.learned.layers)

    def write_export(self, folder: Path, name: str, *, fp16: bool, **facts: Any) -> None:
        """Write a transformers folder, in the precision of the frozen part; see ``write_lvlm``."""
        write_lvlm(self, folder, name, **facts)

    def export_bytes(self) -> int:
        """Weights of the model, in the precision in which they are held."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def rehearse_export(self, processor: Any) -> None:
        """Try what an export needs besides trained weights; see ``sparsight.lvlm.export.rehearsal``."""
        rehearse_export(self, processor or load_processor(self.base, **self.source))

    def train(self, mode: bool = True) -> Any:
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
            "learned": self.learned.record(self.trained_parts),
            "selection": self.selection,
            "retired": list(self.retired.indices),
            "removals": list(self.removals),
            "tuned_before_removal": self.healer.taken,
        }
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the stage; refuse a checkpoint of another base model or of other layers.

        Raises:
            ValueError: Base model or layers differ.
        """
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(SAVED, {})
        recorded = str(saved.get("base_hash"))
        if recorded != self.base_hash and not self.was_base(recorded):
            raise ValueError(
                f"the checkpoint was made from another model than {self.base!r}: weights hash "
                f"{short_hash(recorded)}, not {short_hash(self.base_hash)}"
            )
        if saved["layers"] != self.layers:
            raise ValueError(f"the checkpoint tuned layers {saved['layers']}, the configuration selects {self.layers}")
        self.take_stage(checkpoint)
        self._active = saved["active"]
        plan = learned_by_plan(self.clock, self.steps_taken, layers=self.layers)
        self.learned.take(saved.get("learned") or plan)
        self.selection = saved.get("selection", self.selection)  # not in checkpoints of earlier versions
        self.retired.set(saved["retired"])
        self.removals = saved.get("removals", [])
        self.healer.take(saved.get("tuned_before_removal"))
        self._require_gradients()

    def _require_gradients(self) -> None:
        """Let what the stage trains learn, but for layers that wait for their turn or have left."""
        layers = self._learning_layers()
        require_gradients(self.model, self.parts, self.trained, learning=self.stage.train, layers=layers)
        if self.recipe is None or self.method_weights is None:
            return
        self.method_weights.requires_grad_(METHODS in self.stage.train)
        if METHODS in self.stage.train:
            before = sum(METHODS in stage.train for stage in self.clock.stages[: self._stage_index])
            for method in self.recipe.weighted.values():
                method.begin(before)

    def on_train_start(self) -> None:
        """Let weights of methods, which a strategy that splits the model leaves to themselves, begin alike."""
        super().on_train_start()
        if self.method_weights is not None and is_sharded(self.model):
            alike(self.method_weights.state_dict().values())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average gradients of methods' weights where the strategy does not, as it splits the model.

        Raises:
            NonFiniteError: See :class:`TrainedPartsModule`.
        """
        super().on_before_optimizer_step(optimizer)
        if METHODS in self.stage.train and is_sharded(self.model):
            average_gradients(self._parameters_of(METHODS))

    def _learning_layers(self) -> set[int]:
        return set(self._active) - set(self.retired.indices)

    def _parameters_of(self, part: Part) -> list[torch.nn.Parameter]:
        if part == METHODS:
            assert self.method_weights is not None
            return [parameter for parameter in self.method_weights.parameters() if parameter.requires_grad]
        return [self.model.get_parameter(name) for name in self.trained[part]]  # FSDP2 puts others in their places

    def retire(self, names: Sequence[str]) -> None:
        """Pass these layers by; those that were tuned stop learning, for whose gradients DDP would wait."""
        before = set(self.retired.indices)
        super().retire(names)
        first = bool(names) and not before and self.global_step > 0  # at step 0 nothing has been tuned
        if first:
            self.healer.first_layer_leaves(self.model, [name for part in self.trained.values() for name in part])
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

    def on_stage_start(self) -> None:
        """Let the stage's parts learn, and no others."""
        self._require_gradients()
        self.train()
        average_what_is_trained(self.trainer)
