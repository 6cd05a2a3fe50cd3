"""Recording what a teacher attention sees and returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from blocks.base import SiteSamples
from sparsight.diffusion.surgery.shell import Shell


@contextmanager
def capture_site(shell: Shell) -> Iterator[list[SiteSamples]]:
    """Collect (inputs, outputs) of a shell's teacher, fp32 (B, N, C), one entry for every forward pass inside."""
    samples: list[SiteSamples] = []

    def note(attention: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        assert shell.grid is not None
        samples.append(SiteSamples(args[0].detach().float(), output.detach().float(), shell.grid))

    handle = shell.attention.register_forward_hook(note)
    try:
        yield samples
    finally:
        handle.remove()
