"""A score by how far tuning moved a layer's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError
from sparsight.common.quantised.loading import DTYPES, Dtype
from sparsight.common.quantised.weights import decoded
from sparsight.lvlm.model.load import check_folder, load_lvlm
from sparsight.lvlm.model.lora import adaptable
from sparsight.lvlm.model.tower import PartNames, Parts, find_parts, name_parts, named_parts
from sparsight.lvlm.scores.base import SeparateScore
from sparsight.lvlm.scores.tokens import CalibrationSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ParameterChange(SeparateScore):
    """Sum over a layer's linear weights of |W - W_base| / |W_base| in Frobenius norms (arXiv 2412.12785, its code).

    All linear layers in the decoder layer count, so that fused projections need no names of their own; experts that
    are stacked in one parameter count as one weight. Adapters must be merged. Runs no data.

    Args:
        base: Folder or hub id of the model before tuning: the image-text model, or the text model that it was made of.
    """

    name = "parameter_change"

    def __init__(self, base: str) -> None:
        self.base = base

    def measure(self, model: PreTrainedModel, parts: Parts, batches: CalibrationSet) -> list[float]:
        """See the class.

        Raises:
            ValueError: The base has other layers or weights, or one of them is zero.
        """
        before = _layers_of(self.base, model.dtype, named_parts(model))
        if len(before) != len(parts.layers):
            raise ConfigurationError(f"the base {self.base} has {len(before)} layers, the model {len(parts.layers)}")
        return [
            self._change(index, old, new) for index, (old, new) in enumerate(zip(before, parts.layers, strict=True))
        ]

    def _change(self, index: int, old: nn.Module, new: nn.Module) -> float:
        before, after = _weights(old), _weights(new)
        shapes = [{name: tuple(weight.shape) for name, weight in weights.items()} for weights in (before, after)]
        if shapes[0] != shapes[1]:
            different = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
            raise ConfigurationError(
                f"layer {index} of the base {self.base} has other linear weights: {different[:4]}; adapters must be "
                "merged first"
            )
        total = 0.0
        for name, weight in before.items():
            norm = float(torch.linalg.vector_norm(weight.float()))
            if norm == 0:
                raise ConfigurationError(
                    f"{name} in layer {index} of the base {self.base} is zero: there is no relative change"
                )
            change = after[name].float() - weight.to(after[name].device).float()
            total += float(torch.linalg.vector_norm(change)) / norm
        return total


def _weights(layer: nn.Module) -> Mapping[str, Tensor]:
    return {name: decoded(layer.get_parameter(name)) for name, _ in adaptable(layer)}


def _layers_of(source: str, dtype: torch.dtype, named: PartNames | None) -> nn.ModuleList:
    """Decoder layers of an image-text model or of a text model."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    check_folder(source)
    if type(AutoConfig.from_pretrained(source)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        name = next((name for name, known in DTYPES.items() if known == dtype), "float32")
        return find_parts(name_parts(load_lvlm(source, dtype=cast(Dtype, name)), named)).layers
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).get_decoder().layers
