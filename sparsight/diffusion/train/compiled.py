"""Transformer blocks that are compiled, and whether torch can compile at all where they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.families.known import family_of

VARIANTS = 8  # of a block: teacher and student, with and without gradients, before and after its hand-over


def compile_blocks(denoiser: nn.Module) -> None:
    """Compile every transformer block in place, which keeps parameter names and shares one compilation."""
    blocks = [module for module in denoiser.modules() if type(module).__name__ in family_of(denoiser).blocks]
    for block in blocks:
        block.compile()
    # all blocks are one piece of code to the compiler, and each may be of another shape
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VARIANTS * len(blocks))


def check_compiler(device: torch.device) -> None:
    """Compile a function of one line and call it.

    Args:
        device: Where blocks will be called.

    Raises:
        ConfigurationError: torch cannot; it would say so at the first step only, in hundreds of lines.
    """
    try:
        torch.compile(_twice)(torch.ones(2, device=device))
    except Exception as error:  # of a compiler, a driver or a graph, of any kind
        wanted = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
        reason = str(error).strip().partition("\n")[0]
        raise ConfigurationError(
            f"model.compute.compile is true, and torch cannot compile for {device.type} here ({reason}): install "
            f"{wanted}, or set it to false"
        ) from error


def _twice(x: Tensor) -> Tensor:
    return x + x
