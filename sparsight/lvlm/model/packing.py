"""Which models keep several samples of one row apart by their position ids alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


# Plain causal attention and one position a token. Elsewhere positions have several axes (Qwen-VL), images are attended
# to in both directions (Gemma 3, PaliGemma), or a state runs on from one sample into the next.
MODELS = ("fast_vlm", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "perception_lm", "smolvlm")
TEXT_MODELS = ("llama", "mistral", "phi3", "qwen2", "qwen3")


def check_packable(config: PreTrainedConfig) -> None:
    """Refuse models for which packing is not known to be right.

    Raises:
        ValueError: The model or its text model is not among those.
    """
    text = config.get_text_config().model_type
    if config.model_type not in MODELS or text not in TEXT_MODELS:
        raise ValueError(
            f"packing is not known to be right for {config.model_type} with text model {text}; it is for "
            f"{', '.join(MODELS)} with {', '.join(TEXT_MODELS)}: set packing to false (length_grouping saves padding)"
        )
