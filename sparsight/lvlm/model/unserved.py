"""Image-text models of transformers that are not served, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


from sparsight.common.plain import setting

ENCODER_DECODER = "an encoder reads the image and the question, and its decoder attends to that"
UNSERVED = {  # by model_type
    "blip": "its text decoder attends to the image across, in an encoder-decoder of its own",
    "chameleon": "images are tokens of its vocabulary, made by a VQ model: there is no projector",
    "diffusion_gemma": "it denoises blocks of tokens, so answers have no likelihood token by token",
    "emu3": "images are tokens of its vocabulary, made by a VQ model: there is no projector",
    "evolla": "it reads proteins",
    "fuyu": "image patches enter the decoder directly: there is no vision tower",
    "gemma4_unified": "image patches enter the decoder directly: there is no vision tower",
    "git": "its image features enter the layers of a text encoder without placeholders in the text",
    "idefics": "images enter by gated cross-attention between its layers",
    "inkling_mm_model": "its vision tower ends in the decoder's width: there is no projector",
    "kosmos-2": "images are placed by a mask, not by a token",
    "kosmos-2.5": "images are placed by a mask, not by a token",
    "mistral4": "transformers loads its text model alone: there is no vision tower",
    "pi0": "it answers with a robot's actions",
    "pp_formulanet": ENCODER_DECODER,
}


def refusal(config: PretrainedConfig) -> str | None:
    """Why models of a configuration are not served, if they are not."""
    if setting(config, "is_encoder_decoder", False):
        return ENCODER_DECODER
    return UNSERVED.get(setting(config, "model_type", ""))
