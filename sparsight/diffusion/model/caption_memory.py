"""Captions as the denoiser is told them, embedded once a run, so that text encoders may leave the device.

A caption is embedded by itself, whatever batch it is in: a run that goes on gets the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from sparsight.common.training.dtypes import compute_dtype, sent
from sparsight.diffusion.families.conditioning import (
    Condition,
    concatenate_conditions,
    flatten_condition,
    map_condition,
)

LEAST_ROOM = 2 * 2**30  # bytes of memory beside the device
PATIENCE = 20  # calls one after the other that ask the encoders nothing, before they leave the device


@runtime_checkable
class KnowsCaptions(Protocol):
    """Data, or a callback, that can tell which captions it will come with."""

    def known_captions(self) -> Sequence[str]:
        """Captions, each once or more often; none where they are not known."""
        ...


class CaptionMemory:
    """Conditions by caption, in the memory of the processor, and the encoders that make them.

    Args:
        encoders: Text encoders; where they are is theirs to say until the first caption comes.
        room: Bytes; when they are used up, captions that are not known are embedded whenever they come. A quarter of
            the machine's, shared by as many processes as there are GPUs, if not given.
    """

    def __init__(self, encoders: Sequence[nn.Module], *, room: int | None = None) -> None:
        self.encoders, self.room = list(encoders), _room() if room is None else room
        self._known: dict[Hashable, Condition] = {}
        self._used = self._idle = 0
        self.is_full = False  # whether a caption found no room

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
            self.send_encoders_off()
        rows = [made.get(caption) or self._known[self._key(caption, size)] for caption in captions]
        if not made:  # all of them lie on the processor: one transfer for each part
            return _on(device, reduce(concatenate_conditions, rows))
        return reduce(concatenate_conditions, (_on(device, row) for row in rows))

    def send_encoders_off(self) -> None:
        """Let the encoders leave their device; they come back for a caption that is new."""
        self._bring(torch.device("cpu"))

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
        self.is_full = self._used + needed > self.room
        if not self.is_full:
            self._used += needed
            self._known[key] = own


def _on(device: torch.device, condition: Condition) -> Any:
    return map_condition(lambda part: sent(part, device), condition)


def _room() -> int:
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no POSIX
        return LEAST_ROOM
    return max(LEAST_ROOM, whole // 4 // max(1, torch.cuda.device_count()))
