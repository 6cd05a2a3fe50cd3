"""Denoisers of captions that are made from scratch: their text encoder."""

from __future__ import annotations

from typing import Any

from sparsight.diffusion.pipelines.text_encoders import load_text_encoder


def fitting_text_encoder(
    denoiser: Any, widths: tuple[str, ...], *, class_names: list[str] | None, text_encoder: str | None, text_tokens: int
) -> tuple[Any, Any]:
    """Tokenizer and text encoder for a denoiser that has no weights yet.

    Args:
        denoiser: Its configuration is compared.
        widths: Options of it that must be the encoder's width.
        class_names: Must not be given.
        text_encoder: See ``load_text_encoder``.
        text_tokens: Tokens of every caption.

    Raises:
        ValueError: An option does not belong to such a denoiser or is missing, or the widths differ.
    """
    kind = type(denoiser).__name__
    if text_encoder is None:
        raise ValueError(f"a {kind} needs captions: give text_encoder, or a whole pipeline as pretrained")
    if class_names is not None:
        raise ValueError(f"class_names is for a DiT: a {kind} takes captions")
    tokenizer, encoder = load_text_encoder(text_encoder, tokens=text_tokens)
    for name in widths:
        if denoiser.config[name] != encoder.config.hidden_size:
            raise ValueError(
                f"{name} is {denoiser.config[name]}: make it {encoder.config.hidden_size}, the features that "
                f"{text_encoder!r} gives"
            )
    return tokenizer, encoder
