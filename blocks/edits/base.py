"""What a method may do inside a layer: to its mask, its attention, its heads and its feed-forward part, and to logits.

Shape legend: B batch, Q queries, K keys, h heads, d channels of a head, C channels, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from blocks.tokens.attending import Attending
from blocks.tokens.base import Edit, FeatureReducer
from blocks.tokens.token_map import ANSWER, QUESTION, TokenMap


class Where(NamedTuple):
    """Where a mask program works.

    Args:
        layer: Number of the layer.
        depth: How many there are.
        heads: How many heads it has.
        before: What the layer before attended with, if the program asks for that and the prompt is being read.
        start: Where the first token of each sample stands (B); 0 if not given.
    """

    layer: int = 0
    depth: int = 1
    heads: int = 1
    before: Attending | None = None
    start: Tensor | None = None


class MaskProgram(Edit):
    """Changes who may look at whom.

    Attributes:
        needs_grid: Whether it asks for rows and columns of patches.
        looks: Whether it asks how the layer before attended.
        trains_only: Whether it is left out where nothing learns.
    """

    needs_grid = False
    looks = False
    trains_only = False

    @abstractmethod
    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        """A new mask (B, 1 or h, Q, K) from one, true where a query sees a key."""


class Rows(NamedTuple):
    """Attention of some queries.

    Args:
        old: Their weights (B, h, Q, K).
        logits: Before the softmax and without the mask.
        allowed: The mask (B, 1 or h, Q, K).
        queries: Map of the queries.
        keys: Map of the keys.
        layer: Number of the layer.
        marks: What was remembered of the keys (B, K, ...).
        seen: Attention of the tower's layer ``tower_layer`` on image tokens (B, K), 0 elsewhere, if that is asked for.
    """

    old: Tensor
    logits: Tensor
    allowed: Tensor
    queries: TokenMap
    keys: TokenMap
    layer: int
    marks: Tensor | None = None
    seen: Tensor | None = None


class AttentionEdit(Edit):
    """Changes attention weights of some queries; the kernel computes all others, and these as they were.

    What changes is added to the kernel's output as (new - old) times the values, so that fast kernels stay.

    Attributes:
        tower_layer: The layer of the vision tower whose attention it asks for, if any.
        needs_image: Whether it can do nothing in a layer from which all image tokens are gone.
        trains_only: Whether it is left out where nothing learns.
    """

    tower_layer: int | None = None
    needs_image = False
    trains_only = False

    def mark(self, hidden: Tensor) -> Tensor | None:
        """What to remember of each token (B, Q), by the states (B, Q, C) that enter the layer."""
        return None

    def measure(self, attending: Attending, layer: int) -> Tensor | None:
        """What to remember of each token of the prompt (B, Q, ...), by how the layer attends; answers count as 0."""
        return None

    @abstractmethod
    def rows(self, queries: TokenMap) -> Tensor:
        """Places of the queries whose weights change."""

    @abstractmethod
    def weights(self, rows: Rows) -> Tensor:
        """New attention weights of those queries (B, h, Q, K)."""


class LogitEdit(AttentionEdit):
    """Adds to attention logits before the softmax, of which kernels are told with the mask."""

    def rows(self, queries: TokenMap) -> Tensor:
        """None: weights are the kernel's."""
        return torch.arange(0, device=queries.kind.device)

    def weights(self, rows: Rows) -> Tensor:
        """As they are."""
        return rows.old

    @abstractmethod
    def bias(self, attending: Attending) -> Tensor:
        """What is added (B or 1, h or 1, Q, K), by the layer's queries and keys."""


Kernel = Callable[[Attending, Tensor], Tensor]  # queries, keys and mask; values


class AttentionFunction(LogitEdit):
    """Takes the place of a whole attention."""

    def bias(self, attending: Attending) -> Tensor:
        """Nothing."""
        return attending.query.new_zeros(1, 1, 1, 1)

    @abstractmethod
    def attend(self, kernel: Kernel, attending: Attending, value: Tensor, layer: int) -> Tensor:
        """What the heads answer (B, Q, h, d).

        Args:
            kernel: Computes attention of queries and keys with the mask that it is given with them.
            attending: The layer's own; padding may look at nothing.
            value: (B, g, K, d).
            layer: Its number.
        """


class HeadEdit(Edit):
    """Changes what heads answer, before they are projected."""

    @abstractmethod
    def edit(self, heads: Tensor, layer: int, queries: TokenMap) -> Tensor:
        """New outputs of the heads (B, Q, h, d) from old ones."""


class ComparedHeadEdit(HeadEdit):
    """Scales heads by how they differ in a pass with other images, which goes before the prompt is read.

    Scales are found for the last token of each prompt, and stay for the answer.
    """

    def edit(self, heads: Tensor, layer: int, queries: TokenMap) -> Tensor:
        """Unchanged, in that pass."""
        return heads

    @abstractmethod
    def reducer(self) -> FeatureReducer:
        """What images are in the pass that goes before."""

    @abstractmethod
    def scales(self, heads: Tensor, others: Tensor) -> Tensor:
        """Factors (B, h) from what heads answer at the last token in both passes (B, h, d)."""


Forward = Callable[[Tensor], Tensor]


class FeedForwardEdit(Edit):
    """Changes the feed-forward part of a layer."""

    @abstractmethod
    def feed(
        self, forward: Callable[[Tensor], Tensor], module: torch.nn.Module, hidden: Tensor, queries: TokenMap
    ) -> Tensor:
        """What it answers (B, Q, C).

        Args:
            forward: The part as it was.
            module: The part.
            hidden: What it is given (B, Q, C).
            queries: What tokens these are.
        """


class PositionEdit(Edit):
    """Adds to the positions of tokens, in all layers."""

    @abstractmethod
    def added(self, tokens: TokenMap) -> Tensor:
        """What is added to the positions of a prompt's tokens (B, T), whole; answers get that of its last token."""


class LayerParts(NamedTuple):
    """Modules of a decoder layer.

    Args:
        first_norm: In front of the attention.
        second_norm: In front of the feed-forward part.
        feed_forward: That part.
        last_norm: Behind it, in some families.
    """

    first_norm: torch.nn.Module
    second_norm: torch.nn.Module
    feed_forward: torch.nn.Module
    last_norm: torch.nn.Module | None


class LayerEdit(Edit):
    """Takes the place of whole layers, whose attention is not computed and whose caches stay empty."""

    @abstractmethod
    def compute(
        self, hidden: Tensor, parts: LayerParts, queries: TokenMap, layer: int, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What leaves the layer (B, Q, C), and what its next tokens go on from (B, S).

        Args:
            hidden: What enters it (B, Q, C).
            parts: Its modules.
            queries: What tokens these are.
            layer: Its number.
            state: What the tokens before have left; nothing where the prompt begins.
        """


class BranchDecoder(Edit):
    """Mixes the logits with those of a second pass, which has a cache of its own.

    The second pass has the recipe's methods, but for reducers of images, in whose place stands the branch's own.
    """

    @abstractmethod
    def reducer(self) -> FeatureReducer | None:
        """What images are in the second pass; as they are if not said."""

    @abstractmethod
    def combine(self, logits: Tensor, second: Tensor) -> Tensor:
        """New logits (..., V) from those of both passes."""

    def passes(self) -> Literal["both", "first", "second"]:
        """Whose logits a batch has while the model trains; those of both, combined, if not said."""
        return "both"


UNLIKELY = -1e4  # what is added to logits of words that may not be written; their likelihood stays a number


def plausible(logits: Tensor, contrast: Tensor, *, beta: float) -> Tensor:
    """Contrasted logits (..., V) of words whose probability is at least ``beta`` of the likeliest word's.

    Args:
        logits: Of the model (..., V).
        contrast: What comes out where a word is plausible.
        beta: 0 lets all pass.
    """
    if beta <= 0:
        return contrast
    least = logits.amax(-1, keepdim=True) + torch.log(torch.tensor(beta, dtype=logits.dtype, device=logits.device))
    return torch.where(logits >= least, contrast, contrast.amin(-1, keepdim=True) + UNLIKELY)


def between(value: float, low: float, high: float, *, name: str) -> float:
    """A number that may be from ``low`` to ``high``.

    Raises:
        ValueError: It is not.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} is {low} to {high}; got {value}")
    return value


def layers_from(first: int, *, name: str = "first_layer") -> int:
    """Number of a layer from which on something happens.

    Raises:
        ValueError: It is below 0.
    """
    if first < 0:
        raise ValueError(f"{name} is {first}: layers are counted from 0")
    return first


def within_layers(layers: Sequence[int] | None, layer: int) -> bool:
    """Whether a layer is among those told, or all are meant."""
    return layers is None or layer in layers


def words_after_images(queries: TokenMap) -> Tensor:
    """Places where any sample has text after an image."""
    return (queries.kind >= QUESTION).any(0).nonzero()[:, 0]


def speaking(queries: TokenMap) -> Tensor:
    """Which queries (B, Q) a word of the answer comes out of: the prompt's last, and those of the answer."""
    told = queries.kind == ANSWER
    asked = queries.present & ~told
    sample, last = torch.arange(len(told), device=told.device), queries.last
    return told | torch.zeros_like(told).index_put((sample, last), asked[sample, last])
