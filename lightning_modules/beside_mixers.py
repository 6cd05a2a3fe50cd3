"""Training more of a denoiser than its mixers, in the stages that run it from end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_modules.beside_teacher import BesideTeacher
from lightning_modules.in_stages import InStages
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.ddp import average_what_is_trained
from sparsight.common.training.dtypes import compute_dtype
from sparsight.common.training.processes import average_gradients
from sparsight.diffusion.surgery.rest.choice import chosen_parameters
from sparsight.diffusion.surgery.rest.low_rank import LoRA
from sparsight.diffusion.surgery.rest.rest import free_rest, rest_of
from sparsight.diffusion.train.stages import Stage


class BesideMixers(InStages[Stage], BesideTeacher):
    """Base of distillations.

    Attributes:
        rest_names: Names, in the denoiser, of parameters that train in end-to-end stages alone.
        replicate_trained: Whether all processes hold what trains, and a strategy splits what is frozen alone.
    """

    denoiser: Any
    rest_names: list[str]
    replicate_trained: bool = False

    def free_rest(self, rest: Sequence[str], lora: LoRA | None) -> None:
        """Let more of the denoiser train than its mixers.

        Args:
            rest: See ``sparsight.diffusion.surgery.rest.choice``.
            lora: Adapters, if any.

        Raises:
            ConfigurationError: A name chooses nothing, or no stage would train what is chosen.
        """
        self.rest_names = []
        if not rest and lora is None:
            return
        if all(stage.objective == "layerwise" for stage in self.clock.stages):
            given = "model.trained.rest" if rest else "model.trained.lora"
            raise ConfigurationError(
                f"{given} is for end-to-end stages, and all stages are layerwise, where mixers alone learn: add a "
                "stage with objective: end_to_end, or leave it out"
            )
        learners = any(p.requires_grad for shell in self.shells.values() for p in shell.mixer.parameters())
        if not learners and any(stage.objective == "layerwise" for stage in self.clock.stages):
            raise ConfigurationError(
                "a layerwise stage trains mixers and their projections alone, and none of these has anything to train: "
                "leave the stage out, or set model.trained.projections to true"
            )
        names = chosen_parameters(self.denoiser, self.shells, rest)
        self.rest_names = free_rest(self.denoiser, self.shells, names, lora)

    def refuse_rest(self, *, checkpointing: bool) -> None:
        """Refuse what a trainer cannot serve.

        Args:
            checkpointing: Whether blocks are recomputed in the backward pass.

        Raises:
            ConfigurationError: Parameters are split over processes, or blocks would be recomputed in another precision.
        """
        if not self.rest_names:
            return
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not self.replicate_trained:
            raise ConfigurationError(
                "model.trained.rest and model.trained.lora change what is trained from stage to stage, which "
                "ModelParallelStrategy (FSDP2) cannot where it splits that: set model.compute.replicate_trained to "
                "true, use DDP, or train mixers and projections alone"
            )
        narrow = compute_dtype(self.denoiser)
        wide = all(self.denoiser.get_parameter(name).dtype == narrow for name in self.rest_names)
        if checkpointing and not wide and not isinstance(self.trainer.precision_plugin, MixedPrecision):
            dtype = str(narrow).removeprefix("torch.")
            raise ConfigurationError(
                f"model.trained.rest and model.trained.lora train in float32 in a denoiser in {dtype}, whose blocks "
                "model.compute.gradient_checkpointing recomputes: set trainer.precision to bf16-mixed, or "
                "model.loading.dtype to float32"
            )

    def kept_whole(self) -> Sequence[Parameter]:
        """All of the mixers, what trains beside them, and what the teacher keeps of that, if it is not to be split."""
        if not self.replicate_trained:
            return []
        rest = rest_of(self.denoiser)
        mixers = [parameter for shell in self.shells.values() for parameter in shell.mixer.parameters()]
        others = [self.denoiser.get_parameter(name) for name in self.rest_names]
        return [*mixers, *others, *([] if rest is None else rest.kept)]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average gradients that no strategy averages.

        Raises:
            NonFiniteError: See :class:`TrainedPartsModule`.
        """
        super().on_before_optimizer_step(optimizer)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            average_gradients(self.kept_whole())

    def on_stage_start(self) -> None:
        """Let the stage's parts learn, and no others."""
        super().on_stage_start()
        if self.rest_names:
            self.require_gradients()
            average_what_is_trained(self.trainer)

    def require_gradients(self) -> None:
        """Let what trains beside mixers learn in end-to-end stages alone."""
        for name in self.rest_names:
            self.denoiser.get_parameter(name).requires_grad_(self.stage.objective == "end_to_end")

    @contextmanager
    def all_learning(self) -> Iterator[None]:
        """All that any stage trains requires gradients."""
        for name in self.rest_names:
            self.denoiser.get_parameter(name).requires_grad_(True)
        try:
            yield
        finally:
            self.require_gradients()
