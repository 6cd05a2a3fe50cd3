"""What every token mixer is told and must answer: the grid, the site, and two small base classes.

Only torch is imported here, so that exported models can carry this file's text as it is.

Shape legend: B batch, N tokens (= H * W), C channels, h heads, d channels of a head (C = h * d).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """Height and width, in tokens, of the image that a token sequence was flattened from (row by row)."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a grid needs at least one row and one column, got {self.height}x{self.width}")

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        return self.height * self.width


@dataclass(frozen=True)
class Site:
    """Where a mixer stands: one self-attention of a denoiser.

    Args:
        path: Module path of the attention inside the denoiser, e.g. ``transformer_blocks.3.attn1``.
        channels: Width C of the hidden state that enters and leaves the site.
        heads: Number of attention heads h.
        head_dim: Channels d of each head.
        grid: Tokens at the size that the denoiser was made for (its config's ``sample_size``).
    """

    path: str
    channels: int
    heads: int
    head_dim: int
    grid: Grid


@dataclass(frozen=True)
class AttentionWeights:
    """A teacher attention's projections as plain tensors; biases are ``None`` where it has none.

    ``query``, ``key`` and ``value`` are (h*d, C), ``out`` is (C, h*d); ``scale`` multiplies the logits.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    out_bias: Tensor | None
    scale: float


@dataclass(frozen=True)
class SiteSamples:
    """What a teacher attention saw and answered on one batch: both (B, N, C), on one grid."""

    inputs: Tensor
    outputs: Tensor
    grid: Grid


class TokenMixer(nn.Module, ABC):
    """Base of everything that can stand in for a self-attention.

    Subclass :class:`CoreMixer` or :class:`FeatureMixer`, take a :class:`Site` as the only positional argument and
    plain-data keyword options after it, and keep each option in an attribute of its name: they are written to YAML,
    checkpoints and exports. The file of a mixer may import torch and ``blocks.base`` only, so that it can travel inside
    an exported model.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options that make an equal mixer for this site."""
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def flops(self, grid: Grid) -> int:
        """FLOPs (2 per multiply-accumulate) of one image on ``grid``, without the projections of a core mixer."""

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object] | None:
        """Options with which the mixer equals the teacher's attention on ``grid``, or ``None`` if there are none."""
        return None

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Set the parameters from the teacher's weights and from what it did on real batches (default: nothing)."""


class CoreMixer(TokenMixer):
    """A mixer of queries, keys and values; the site's projections are the teacher's."""

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix tokens: ``q``, ``k``, ``v`` are (B, h, N, d), and so is the answer; ``scale`` is the teacher's."""


class FeatureMixer(TokenMixer):
    """A mixer of the normalised hidden state itself; it uses none of the teacher's projections."""

    @abstractmethod
    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C), in the dtype of the input."""
