"""Captions as the denoiser is told them, embedded once a run, so that text encoders may leave the device.

A caption is embedded by itself, whatever batch it is in: a run that goes on gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import nn

from sparsight.common.training.dtypes import compute_dtype, sent
from sparsight.diffusion.families.conditioning import (
    Condition,
    concatenate_conditions,
    flatten_condition,
    map_condition,
)

ROOM = 2 * 2**30  # bytes of memory beside the device
PATIENCE = 20  # calls one after the other that ask the encoders nothing, before they leave the device


class CaptionMemory:
    """Conditions by caption, in the memory of the processor, and the encoders that make them.

    Args:
        encoders: Text encoders; where they are is theirs to say until the first caption comes.
        room: Bytes; when they are used up, captions that are not known are embedded whenever they come.
    """

    def __init__(self, encoders: Sequence[nn.Module], *, room: int = ROOM) -> None:
        self.encoders, self.room = list(encoders), room
        self._known: dict[Hashable, Condition] = {}
        self._used = self._idle = 0

    def conditions(
        self, captions: Sequence[str], size: tuple[int, int], embed: Callable[[str], Condition], device: torch.device
    ) -> Condition:
        """Conditions of captions, one row for each, on a device.

        Args:
            captions: One or more.
            size: Of the images, in pixels: some families tell it to the denoiser.
            embed: Makes the condition of one caption, a single row; called where it is not known.
            device: Where the encoders compute, and where the conditions are wanted.
        """
        made: dict[str, Condition] = {}
        for caption in captions:
            if self._key(caption, size) not in self._known and caption not in made:
                self._bring(device)
                made[caption] = embed(caption)
                self._keep(self._key(caption, size), made[caption])
        self._idle = 0 if made else self._idle + 1
        if self._idle == PATIENCE and self._used < self.room:
            self._bring(torch.device("cpu"))
        rows = [made.get(caption) or self._known[self._key(caption, size)] for caption in captions]
        if not made:  # all of them lie on the processor: one transfer for each part
            return _on(device, reduce(concatenate_conditions, rows))
        return reduce(concatenate_conditions, (_on(device, row) for row in rows))

    def _key(self, caption: str, size: tuple[int, int]) -> Hashable:
        dtypes = tuple(str(compute_dtype(encoder)) for encoder in self.encoders)
        return caption, *size, *dtypes

    def _bring(self, device: torch.device) -> None:
        for encoder in self.encoders:
            if any(tensor.device != device for tensor in encoder.parameters()):
                encoder.to(device)

    def _keep(self, key: Hashable, condition: Condition) -> None:
        own = _on(torch.device("cpu"), condition)
        needed = sum(part.numel() * part.element_size() for part in flatten_condition(own, "cond").values())
        if self._used + needed <= self.room:
            self._used += needed
            self._known[key] = own


def _on(device: torch.device, condition: Condition) -> Any:
    return map_condition(lambda part: sent(part, device), condition)
