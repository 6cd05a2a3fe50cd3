"""Making the student of an attention, and putting it in its place; this file's text travels inside the exports."""

from __future__ import annotations

from typing import Any

from torch import nn

from blocks.base import TokenMixer
from sparsight.diffusion.surgery.core_site import core_site
from sparsight.diffusion.surgery.joint import is_core
from sparsight.diffusion.surgery.student import StudentAttention


def make_student(attention: Any, mixer: TokenMixer) -> Any:
    """The student of one attention: the attention with another core, which shares its layers, or a feature mixer."""
    if is_core(mixer):
        return core_site(attention, mixer)
    return StudentAttention(
        mixer,  # type: ignore[arg-type]  # there are two kinds
        # most have neither
        rescale_output_factor=vars(attention).get("rescale_output_factor", 1.0),
        residual_connection=vars(attention).get("residual_connection", False),
    )


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
