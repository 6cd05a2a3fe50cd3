"""What a method may do inside a layer: to its mask, its attention weights and its heads.

Shape legend: B batch, Q queries, K keys, h heads, d channels of a head, C channels.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from blocks.tokens.base import Edit
from blocks.tokens.token_map import TokenMap


class MaskProgram(Edit):
    """Changes who may look at whom.

    Attributes:
        needs_grid: Whether it asks for rows and columns of patches.
    """

    needs_grid = False

    @abstractmethod
    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap) -> Tensor:
        """A new mask (B, 1, Q, K) from one, true where a query sees a key."""


class AttentionEdit(Edit):
    """Changes attention weights of some queries; the kernel computes all others, and these as they were.

    What changes is added to the kernel's output as (new - old) times the values, so that fast kernels stay.
    """

    def mark(self, hidden: Tensor) -> Tensor | None:
        """What to remember of each token (B, Q), by the states (B, Q, C) that enter the layer."""
        return None

    @abstractmethod
    def rows(self, queries: TokenMap) -> Tensor:
        """Places of the queries whose weights change."""

    @abstractmethod
    def weights(self, old: Tensor, queries: TokenMap, keys: TokenMap, marks: Tensor | None) -> Tensor:
        """New attention weights of those queries from old ones (B, h, Q, K), by the marks (B, K) of the keys."""


class HeadEdit(Edit):
    """Changes what heads answer, before they are projected."""

    @abstractmethod
    def edit(self, heads: Tensor, layer: int) -> Tensor:
        """New outputs of the heads (B, Q, h, d) from old ones."""


def layers_from(first: int, *, name: str = "first_layer") -> int:
    """Number of a layer from which on something happens.

    Raises:
        ValueError: It is below 0.
    """
    if first < 0:
        raise ValueError(f"{name} is {first}: layers are counted from 0")
    return first
