"""The families that are served, and which one a denoiser or a pipeline is of."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from sparsight.diffusion.families.conditioning import Conditioner
from sparsight.diffusion.families.dit import DiT
from sparsight.diffusion.families.family import AttentionFacts, Family
from sparsight.diffusion.families.flux import Flux
from sparsight.diffusion.families.pixart import PixArt
from sparsight.diffusion.families.sd3 import SD3
from sparsight.diffusion.families.unet import UNet
from sparsight.diffusion.families.wan import Wan

FAMILIES: dict[str, Family] = {family.name: family for family in (UNet(), DiT(), PixArt(), SD3(), Flux(), Wan())}
"""By the class of diffusers."""


def family_of(denoiser: nn.Module) -> Family:
    """The family of a denoiser, or of a student whose class derives from it.

    Raises:
        ValueError: The denoiser is of none of the families that are served.
    """
    found = _known(denoiser)
    if found is None:
        raise ValueError(f"{type(denoiser).__name__} is not supported: use one of {', '.join(FAMILIES)}")
    return found


def facts_of(attention: nn.Module) -> AttentionFacts | None:
    """What surgery asks of an attention module; ``None`` if no family has such a one."""
    kinds = [base.__name__ for base in type(attention).__mro__]
    found = next((family for family in FAMILIES.values() if not family.attentions.isdisjoint(kinds)), None)
    return None if found is None else found.facts(attention)


def plain_class(denoiser: nn.Module) -> Any:
    """The class of diffusers that a denoiser is, or that a student of it derives from."""
    return resolve_name(f"diffusers:{family_of(denoiser).name}")


def conditioner_for(pipeline: Any, device: torch.device) -> Conditioner:
    """The conditioner of a pipeline.

    Raises:
        ValueError: The pipeline is of a kind that Sparsight cannot condition.
    """
    kind = type(pipeline).__name__
    denoiser = pipeline.components.get("transformer", pipeline.components.get("unet"))
    families = [family for family in FAMILIES.values() if kind in family.pipelines]
    # any pipeline will do whose denoiser takes classes
    if not families and isinstance(denoiser, nn.Module) and isinstance(_known(denoiser), DiT):
        families = [family_of(denoiser)]
    if not families:
        served = [name for family in FAMILIES.values() for name in family.pipelines]
        raise ValueError(f"{kind} is not supported: give a pipeline with a {DiT.name}, or one of {', '.join(served)}")
    return families[0].conditioner(pipeline, device)


def _known(denoiser: nn.Module) -> Family | None:
    return next((FAMILIES[base.__name__] for base in type(denoiser).__mro__ if base.__name__ in FAMILIES), None)


def example_inputs(
    denoiser: Any,
    *,
    batch: int = 1,
    size: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Keyword arguments of ``denoiser.forward`` with random content: for probing sites, counting FLOPs and timing.

    Args:
        denoiser: Of a family that is served.
        batch: Samples B.
        size: Sides in model space; those that the denoiser was made for if not given.
        device: Where the tensors are; ``meta`` for counting.
        dtype: Of the floating-point inputs.
    """
    family = family_of(denoiser)
    size = family.sample_shape(denoiser)[1:] if size is None else size
    return family.inputs(denoiser, batch, size, device=device, dtype=dtype)


def published(name: str) -> Any:
    """The denoiser of a published model at its real size, with fresh weights on torch's default device.

    For shapes, FLOPs and times, without a hub.

    Args:
        name: One of those that the families know, such as ``sd15``.
    """
    family = next(family for family in FAMILIES.values() if name in family.published)
    return resolve_name(f"diffusers:{family.name}")(**family.published[name])
