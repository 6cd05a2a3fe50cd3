"""Making the student of an attention, and putting it in its place; this file's text travels inside the exports."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from blocks.base import CoreMixer, TokenMixer
from sparsight.diffusion.surgery.student import StudentAttention


def make_student(attention: Any, mixer: TokenMixer, *, own_projections: bool) -> StudentAttention:
    """The student of one attention; core mixers share its projections or own trainable copies."""
    names = ("to_q", "to_k", "to_v", "to_out") if isinstance(mixer, CoreMixer) else ()
    projections = {name: attention.get_submodule(name) for name in names}
    if own_projections:
        projections = {name: _trainable_copy(module) for name, module in projections.items()}
    return StudentAttention(
        mixer,
        projections,
        scale=attention.scale,
        rescale_output_factor=attention.rescale_output_factor,
        residual_connection=attention.residual_connection,
    )


def _trainable_copy(module: nn.Module) -> nn.Module:
    """In float32 at least: half precision swallows small updates."""
    own = copy.deepcopy(module).requires_grad_()
    return own if all(p.dtype.itemsize > 2 for p in own.parameters()) else own.float()


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
