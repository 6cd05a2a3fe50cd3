"""Whether a model can read images as a processor prepares them, which transformers says deep in a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from sparsight.common.errors import ConfigurationError, first_line
from sparsight.common.measure.memory import is_out_of_memory
from sparsight.lvlm.model.answer_losses import answer_logits
from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REMEDY = "set data.model to model.base, and correct or leave out data.chat.processor_options"


def check_images(model: PreTrainedModel, parts: Parts, inputs: Mapping[str, Any]) -> None:
    """Let a model read one sample with images.

    Args:
        model: The model.
        parts: Its parts.
        inputs: Keyword arguments of its forward pass for one sample, which holds at least one image.

    Raises:
        ConfigurationError: Nothing in it stands for an image, or the model fails before its first decoder layer: at
            images of another size, or at more or fewer features than places for them.
    """
    ids_BT = inputs["input_ids"]
    if not bool((ids_BT == parts.image_token_id).any()):
        raise ConfigurationError(
            "the data's processor marks pictures by another token than the model, whose image token has id "
            f"{parts.image_token_id}: {REMEDY}"
        )
    last_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    last_BT[:, -1] = True
    begun: list[nn.Module] = []
    hook = parts.layers[0].register_forward_pre_hook(lambda layer, _: begun.append(layer))
    try:
        with torch.no_grad():
            answer_logits(model, move_data_to_device(inputs, model.device), last_BT)
    except Exception as error:  # models check little of their inputs, so it may be anything
        if begun or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        if "dtype" in reason and len({p.dtype for p in model.parameters() if p.is_floating_point()}) > 1:
            raise ConfigurationError(
                f"the model's weights are in several precisions, which do not meet ({reason}): set trainer.precision "
                "to bf16-mixed, or model.loading.dtype to float32"
            ) from error
        raise ConfigurationError(
            f"the model cannot read pictures as the data's processor prepares them ({reason}): {REMEDY}"
        ) from error
    finally:
        hook.remove()
