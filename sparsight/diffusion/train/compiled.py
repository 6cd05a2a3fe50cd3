"""Transformer blocks that are compiled, and whether torch can compile at all where they train."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError, first_line
from sparsight.diffusion.families.known import family_of

VARIANTS = 8  # of a block: teacher and student, with and without gradients, before and after its hand-over


def compile_blocks(denoiser: nn.Module) -> None:
    """Compile every transformer block in place, which keeps parameter names and shares one compilation."""
    blocks = [module for module in denoiser.modules() if type(module).__name__ in family_of(denoiser).blocks]
    for block in blocks:
        if block._compiled_call_impl is None:  # each stage of a run asks anew
            block.compile()
    # all blocks are one piece of code to the compiler, and each may be of another shape
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS * len(blocks))


def compiles_on(device: torch.device, wanted: bool | Literal["auto"]) -> bool:
    """Whether blocks are to be compiled where they will be called.

    Args:
        device: Where that is.
        wanted: ``model.compute.compile``; ``auto`` where a GPU is, and says why torch cannot where it cannot.

    Raises:
        ConfigurationError: They have to be compiled and torch cannot; it would say so at the first step only, in
            hundreds of lines.
    """
    if wanted is False or (wanted == "auto" and device.type != "cuda"):
        return False
    try:
        torch.compile(_twice)(torch.ones(2, device=device))
    except Exception as error:  # of a compiler, a driver or a graph, of any kind
        missing = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        cannot = f"torch cannot compile for {device.type} here ({first_line(error)})"
        if wanted == "auto":
            rank_zero_info(f"model.compute.compile auto is false: {cannot}; {missing} would let it")
            return False
        told = f"model.compute.compile is true, and {cannot}: install {missing}, or set it to false"
        raise ConfigurationError(told) from error
    return True


def _twice(x: Tensor) -> Tensor:
    return x + x
