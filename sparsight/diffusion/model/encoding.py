"""Batches of images and captions as a denoiser sees them: latents and text embeddings, to be kept on disk.

Shape legend: N samples; V variants of an image (as it is, and mirrored if asked for); C, H, W in model space; L bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsight.common.finite import NonFiniteError
from sparsight.diffusion.families.conditioning import ClassLabels, flatten_condition
from sparsight.diffusion.model.diffusion_model import DiffusionModel

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COND = "cond"


def encode_batches(
    model: DiffusionModel, batches: Iterable[Mapping[str, Any]], *, mirrored: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Encode images by the model's VAE, if it has one, and captions by its text encoders, exactly as training would.

    Args:
        model: The model, its VAE and text encoders on the device to work on.
        batches: ``image`` (B, C, H, W) in [-1, 1] and ``index``, with ``caption`` or ``label``; all of one size.
        mirrored: Encode every image mirrored too: a VAE's latents of a mirrored image are not its latents mirrored.
        dtype: Of latents and embeddings.

    Returns:
        ``sample`` (N, V, C, H, W), ``index`` (N,), ``label`` (N,) and ``caption`` (N, L) in UTF-8 where there are any,
        and the parts of a text condition under ``cond``; on the CPU.

    Raises:
        NonFiniteError: A value is not finite, or too large for ``dtype``.
    """
    rows: list[dict[str, Tensor]] = []
    captions: list[str] = []
    device = torch.device("cpu") if model.vae is None else next(model.vae.parameters()).device
    for batch in batches:
        image = batch["image"].to(device)
        variants = [image, image.flip(-1)] if mirrored else [image]
        row = {"sample": torch.stack([model.encode(variant) for variant in variants], 1), "index": batch["index"]}
        if "label" in batch:
            row["label"] = batch["label"]
        captions += batch.get("caption", [])
        if not isinstance(model.conditioner, ClassLabels):
            row |= flatten_condition(model.conditioner(batch, (image.shape[-2], image.shape[-1])), COND)
        rows.append({name: _stored(part, dtype, name) for name, part in row.items()})
    texts = {"caption": text_tensor(captions)} if captions else {}
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} | texts


def encode_unconditional(model: DiffusionModel, size: tuple[int, int]) -> dict[str, Tensor]:
    """One row of the empty condition at an image size, in the precision of the text encoder; on the CPU."""
    flat = flatten_condition(model.conditioner.unconditional(1, size), COND)
    return {name: part.cpu() for name, part in flat.items()}


def _stored(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    values = values.cpu()
    if not values.is_floating_point():
        return values
    if not (values.abs() <= torch.finfo(dtype).max).all():  # false for NaN too
        raise NonFiniteError(f"{name} holds values that are NaN, infinite or too large for {dtype}")
    return values.to(dtype)


def text_tensor(texts: list[str]) -> Tensor:
    """Texts as UTF-8, uint8 (N, L), filled up with zeros."""
    encoded = [text.encode() for text in texts]
    length = max(1, *map(len, encoded))
    return torch.stack([torch.tensor(list(text.ljust(length, b"\0")), dtype=torch.uint8) for text in encoded])


def text_of(row_L: Tensor) -> str:
    """One text of ``text_tensor``."""
    return bytes(row_L.tolist()).rstrip(b"\0").decode()
