"""Reading the residual stream right after a self-attention was added to it.

Transformer blocks of diffusers do not name that tensor, but hand it unchanged to the next layer; where attention and
feed-forward layers stand side by side, it is the block's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from sparsight.diffusion.families.known import family_of


class ResidualTaps:
    """Residual streams (B, N, C) after every given site.

    Args:
        denoiser: The denoiser that holds the sites.
        paths: Paths of the sites, each a block's path and the name of an attention in it.
    """

    def __init__(self, denoiser: nn.Module, paths: Iterable[str]) -> None:
        self._readers: dict[str, tuple[nn.Module, bool]] = {}  # and whether its output counts
        family = family_of(denoiser)
        for path in paths:
            block_path, _, name = path.rpartition(".")
            block = denoiser.get_submodule(block_path)
            reader = family.next_reader(block, name)
            self._readers[path] = reader, reader is block

    @contextmanager
    def listening(self) -> Iterator[dict[str, Tensor]]:
        """Streams of the forward pass inside, by site."""
        streams: dict[str, Tensor] = {}
        handles = [
            reader.register_forward_hook(partial(_note_output, streams, path))
            if ends
            else reader.register_forward_pre_hook(partial(_note, streams, path))
            for path, (reader, ends) in self._readers.items()
        ]
        try:
            yield streams
        finally:
            for handle in handles:
                handle.remove()


def _note(streams: dict[str, Tensor], path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    # a recomputation in the backward pass must not replace what the loss was built on
    streams.setdefault(path, args[0])


def _note_output(streams: dict[str, Tensor], path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    streams.setdefault(path, output[-1] if isinstance(output, tuple) else output)
