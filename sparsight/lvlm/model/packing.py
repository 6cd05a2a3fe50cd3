"""Several samples in one row: which models keep them apart, and the positions that tell a model where each begins.

Shape legend: T tokens of a sample, A axes of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Positions = Callable[[Mapping[str, Tensor]], Tensor]
"""Positions (T), or (A, T), of one sample's tokens, of its model inputs."""

# Plain causal attention and one position a token
MODELS = ("fast_vlm", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "perception_lm", "smolvlm")
TEXT_MODELS = (
    *("cohere", "gemma", "gemma2", "glm4", "granite", "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi", "phi3"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"),
)
# Positions of three axes (M-RoPE), before which their text models take another, by which samples are told apart
OF_AXES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
# Kernels that are given a mask. Those of FlashAttention tell samples apart in batches of one row alone.
KERNELS = ("eager", "flex_attention", "sdpa")
_OTHERWISE = {
    "gemma3": "in its layers with sliding windows images are found by their place in the row, not in the sample",
    "paligemma": "its prompts are attended to in both directions",
}


def packed_positions(config: PreTrainedConfig) -> Positions:
    """How positions of a packed sample are counted.

    Args:
        config: The model's.

    Raises:
        ValueError: Packing is not known to be right for the model, or its text model.
    """
    text = config.get_text_config().model_type
    if config.model_type in OF_AXES:
        return _AxisPositions(config)
    if config.model_type in MODELS and text in TEXT_MODELS:
        return counted
    reason = _OTHERWISE.get(config.model_type, "")
    raise ValueError(
        f"packing is not known to be right for {config.model_type} with text model {text}"
        f"{f' ({reason})' if reason else ''}; it is for {', '.join(OF_AXES)}, and for {', '.join(MODELS)} with "
        f"{', '.join(TEXT_MODELS)}: set batching.packing to false (batching.length_grouping saves padding)"
    )


def counted(inputs: Mapping[str, Tensor]) -> Tensor:
    """0, 1, 2 ... (T)."""
    return torch.arange(inputs["input_ids"].shape[1])


class _AxisPositions:
    """Positions (4, T): of the text, and time, row and column as the model's own class counts them."""

    def __init__(self, config: PreTrainedConfig) -> None:
        from transformers import AutoModel

        with torch.device("meta"):
            self._model: Any = AutoModel.from_config(config)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
        axes_31T, _ = self._model.get_rope_index(ids, kinds, image_grid_thw=inputs.get("image_grid_thw"))
        return torch.cat([counted(inputs)[None], axes_31T[:, 0]])
