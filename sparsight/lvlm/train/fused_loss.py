"""The loss of answers by kernels of other packages, which never hold the logits of all answer tokens.

Shape legend: N answer tokens of a batch, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from blocks.base import under_autocast
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.answer_losses import answer_losses, answer_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FusedKind = Literal["cut_cross_entropy", "liger"]
PACKAGES: dict[FusedKind, tuple[str, str]] = {
    "cut_cross_entropy": ("cut_cross_entropy", "cut-cross-entropy"),
    "liger": ("liger_kernel", "liger-kernel"),
}
TOLERANCE = 0.02  # of a loss in half precision, relative
_TRIED = 8  # tokens


class FusedLoss:
    """Head and cross-entropy as one call: Liger (Hsu et al., arXiv 2410.10989), cut cross-entropy (arXiv 2411.09009).

    Both are for a GPU. On a CPU cut cross-entropy's form in compiled torch steps in, which holds logits; there Liger's
    kernels run in Triton's interpreter alone (``TRITON_INTERPRET=1``).

    Args:
        kind: Which.

    Raises:
        ConfigurationError: Its package is not installed.
    """

    def __init__(self, kind: FusedKind) -> None:
        module, package = PACKAGES[kind]
        if find_spec(module) is None:
            raise ConfigurationError(
                f"model.compute.fused_loss: {kind} needs {package}, which is not installed: pip install "
                f"'sparsight[fused]' (or {package}), or set it to null"
            )
        self.kind = kind

    def check_place(self, trainer: Trainer) -> None:
        """Refuse a device or strategy that it cannot run with; say what steps in.

        Raises:
            ConfigurationError: It cannot.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ConfigurationError(
                f"model.compute.fused_loss: {self.kind} reads the head's weights, which ModelParallelStrategy (FSDP2) "
                "splits: set it to null"
            )
        device = trainer.strategy.root_device
        if device.type == "cuda":
            return
        if self.kind == "liger" and not _interpreted():
            raise ConfigurationError(
                f"model.compute.fused_loss: liger runs on a GPU, and this run trains on {device.type}: set it to null"
            )
        if self.kind == "cut_cross_entropy":
            rank_zero_warn(
                "model.compute.fused_loss: cut_cross_entropy saves memory on a GPU; on this device its form in "
                "compiled torch steps in, which holds all logits"
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Let it work once, on a few tokens, and compare.

        Raises:
            ConfigurationError: The model's head is more than a product with weights, its logits are changed behind it,
                the kernel fails, or its loss differs.
        """
        option = f"model.compute.fused_loss: {self.kind}"
        head: Any = model.get_output_embeddings()
        if type(head) is not nn.Linear or [name for name, _ in head.named_parameters()] != ["weight"]:
            raise ConfigurationError(
                f"{option} takes a head that is a product with weights, and that of {type(model).__name__} is {head}: "
                "set it to null"
            )
        ids = torch.arange(1, 1 + _TRIED, device=head.weight.device)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        seen: list[Tensor] = []
        hook = head.register_forward_hook(lambda _, args, logits: seen.append(logits))
        try:
            with torch.no_grad():
                logits = model(**inputs, use_cache=False).logits
                expected = answer_losses(model, inputs, ids)[0].sum()
        finally:
            hook.remove()
        if not torch.equal(logits.float(), seen[0].float()):
            raise ConfigurationError(
                f"{option} would pass by what {type(model).__name__} does with its logits (scaling, capping): set it "
                "to null"
            )
        try:
            with torch.no_grad():
                found, _ = self.total(model, inputs, ids)
        except Exception as error:  # of a compiler or a driver, of any kind
            raise ConfigurationError(f"{option} fails here: {error}; set it to null") from error
        if not abs(float(found) - float(expected)) <= TOLERANCE * float(expected):
            raise ConfigurationError(
                f"{option} gives a loss of {float(found):.4g} where the model's own is {float(expected):.4g}: set it "
                "to null"
            )

    def total(self, model: PreTrainedModel, inputs: Mapping[str, Any], labels_BT: Tensor) -> tuple[Tensor, int]:
        """Sum of the negative log-likelihoods of all labelled tokens, in nats, and how many these are.

        Args:
            model: The model; its head learns nothing.
            inputs: Keyword arguments of its forward pass.
            labels_BT: Token ids, ``IGNORED`` where there is nothing to learn.
        """
        states_NC, next_N = answer_states(model, inputs, labels_BT)
        head: Any = model.get_output_embeddings()
        weight_VC = head.weight.detach()
        if under_autocast(states_NC):
            dtype = torch.get_autocast_dtype(states_NC.device.type)
            states_NC, weight_VC = states_NC.to(dtype), weight_VC.to(dtype)
        return self._sum(states_NC, weight_VC, next_N).float(), len(next_N)

    def _sum(self, states_NC: Tensor, weight_VC: Tensor, next_N: Tensor) -> Tensor:
        if self.kind == "liger":
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

            loss: Tensor = liger_fused_linear_cross_entropy(states_NC, weight_VC, next_N, reduction="sum")
            return loss
        from cut_cross_entropy import linear_cross_entropy

        form = "cce" if states_NC.is_cuda else "torch_compile"
        found: Tensor = linear_cross_entropy(states_NC, weight_VC, next_N, reduction="sum", impl=form)
        return found


def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)
