"""What a method may do with tokens: fewer for an image before the decoder, or fewer from one of its layers on.

Shape legend: B batch, T tokens, N tokens of a crop, K kept, h heads, d channels of a head, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from torch import Tensor

from blocks.tokens.token_map import TokenMap

Positions = Literal["keep", "renumber"]
POSITIONS = ("keep", "renumber")


class Edit(ABC):  # noqa: B024 - kinds of methods say what must be written
    """One method in a recipe; options are keyword arguments of plain data."""

    def at(self, layer: int, depth: int) -> bool:
        """Whether it is about a layer of a decoder that has ``depth`` of them."""
        return True

    def record(self) -> dict[str, Any]:
        """The method and its options as plain data."""
        return {"method": type(self).__name__, "options": dict(vars(self))}


class Crop(NamedTuple):
    """What a reducer sees of one crop of an image, or of the whole image where it is not cropped.

    Args:
        features: As they enter the decoder (N, C).
        attention: In the layer ``tower_layer`` of the vision tower, on each patch (h, N): that of the class token, or
            the mean over all patches where there is none.
        keys: In the same layer (h, N, d).
        seed: A number that depends on the prompt and the crop alone.
    """

    features: Tensor
    attention: Tensor | None
    keys: Tensor | None
    seed: int


class Reduction(NamedTuple):
    """What remains of a crop.

    Args:
        keep: Which tokens (K), ascending.
        weights: The mixture of all tokens that each of them becomes (K, N); they stay as they are if not given.
    """

    keep: Tensor
    weights: Tensor | None = None


class FeatureReducer(Edit):
    """Drops or merges tokens of an image before the decoder.

    Attributes:
        positions: Whether tokens keep their positions or are numbered anew.
        tower_layer: The layer of the vision tower that it looks into, if any.
        merges: Whether tokens become mixtures, which no longer stand for a patch.
    """

    positions: Positions = "keep"
    tower_layer: int | None = None
    merges = False

    @abstractmethod
    def reduce(self, crop: Crop) -> Reduction:
        """Choose what remains of a crop."""


class LayerPolicy(Edit):
    """Drops tokens from a layer on, while the prompt is read; the answer follows.

    It sees how the prompt's last token attends in the layer before.

    Attributes:
        positions: Whether the rest keeps its positions or is numbered anew.
    """

    positions: Positions = "keep"

    @abstractmethod
    def at(self, layer: int, depth: int) -> bool:
        """Whether it drops tokens before this layer computes; never before the first one."""

    @abstractmethod
    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        """Which tokens stay (B, T), by attention (B, h, T)."""


def share(value: float, *, name: str) -> float:
    """A share of tokens that stays.

    Raises:
        ValueError: It is not above 0 and at most 1.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name} is the share of image tokens that stays, above 0 and at most 1; got {value}")
    return value


def positions_of(value: Positions) -> Positions:
    """How positions of what stays are counted.

    Raises:
        ValueError: There is no such way.
    """
    if value not in POSITIONS:
        raise ValueError(f"positions is {value!r}; allowed are {', '.join(POSITIONS)}")
    return value


def kept(count: int, ratio: float) -> int:
    """How many of some tokens a share is: rounded down, at least one."""
    return max(int(count * ratio + 1e-9), 1)  # 0.29 * 100 is 28.999...
