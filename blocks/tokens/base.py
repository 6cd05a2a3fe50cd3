"""What a method may do with tokens: fewer for an image before the decoder, or fewer from one of its layers on.

Shape legend: B batch, T tokens, N tokens of a crop, K kept, h heads, d channels of a head, C channels.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from blocks.tokens.attending import Attending
from blocks.tokens.token_map import TokenMap

Positions = Literal["keep", "renumber"]
POSITIONS = ("keep", "renumber")


class Edit(ABC):  # noqa: B024 - kinds of methods say what must be written
    """One method in a recipe; options are keyword arguments of plain data."""

    def at(self, layer: int, depth: int) -> bool:
        """Whether it is about a layer of a decoder that has ``depth`` of them."""
        return True

    def record(self) -> dict[str, Any]:
        """The method and its options as plain data, from which it can be made anew."""
        known = vars(self)
        options = {name: known[name] for name in inspect.signature(type(self)).parameters}
        return {"method": type(self).__name__, "options": options}


class Crop(NamedTuple):
    """What a reducer sees of one crop of an image, or of the whole image where it is not cropped.

    Args:
        features: As they enter the decoder (N, C).
        attention: In the layer ``tower_layer`` of the vision tower, on each patch (h, N): that of the class token, or
            the mean over all patches where there is none. Where a token stands for several patches, what they get is
            added up.
        keys: In the same layer (h, N, d), mean over the patches of a token.
        seed: A number that depends on the prompt and the crop alone.
        ensemble: ``attention`` of the layers from ``tower_from`` to ``tower_layer`` (n, h, N).
        row: Row of each token in the grid of the crop (N).
        column: Column of each (N).
        text: What the question's tokens are before the decoder (Q, C).
        asked: Logits of the prompt's last token in the decoder's layer ``decoder_layer`` (h, N).
        number: Which crop of its image, from 0; and ``image``, which image of its sample.
        learns: Whether the model trains.
        block: The decoder layer ``encoder_layer`` at work on tokens (N, C) as one of an encoder.
    """

    features: Tensor
    attention: Tensor | None
    keys: Tensor | None
    seed: int
    ensemble: Tensor | None = None
    row: Tensor | None = None
    column: Tensor | None = None
    text: Tensor | None = None
    asked: Tensor | None = None
    number: int = 0
    image: int = 0
    learns: bool = False
    block: Callable[[Tensor], Tensor] | None = None


class Reduction(NamedTuple):
    """What remains of a crop.

    Args:
        keep: Which tokens (K), ascending.
        weights: The mixture of all tokens that each of them becomes (K, N); they stay as they are if not given.
        features: What they become (K, C), in place of a mixture; what is added to tokens in later layers of some models
            is then mixed by ``weights``, is 0 without them, and stays where all tokens are kept.
    """

    keep: Tensor
    weights: Tensor | None = None
    features: Tensor | None = None


class FeatureReducer(Edit):
    """Drops or merges tokens of an image before the decoder.

    Attributes:
        positions: Whether tokens keep their positions or are numbered anew.
        tower_layer: The layer of the vision tower that it looks into, if any.
        tower_from: The first of several layers of it, up to ``tower_layer``.
        decoder_layer: The layer of the decoder that it looks into, in a pass of its own up to there, if any.
        encoder_layer: The layer of the decoder that it uses as one of an encoder, if any.
        merges: Whether tokens become mixtures, which no longer stand for a patch.
        keeps_marks: Whether marks at the ends of rows stay.
    """

    positions: Positions = "keep"
    tower_layer: int | None = None
    tower_from: int | None = None
    decoder_layer: int | None = None
    encoder_layer: int | None = None
    merges = False
    keeps_marks = True

    @abstractmethod
    def reduce(self, crop: Crop) -> Reduction:
        """Choose what remains of a crop."""

    def reduce_sample(self, crops: Sequence[Crop]) -> list[Reduction]:
        """Choose what remains of all crops of a sample; each by itself if not said otherwise."""
        return [self.reduce(crop) for crop in crops]


class Sight(NamedTuple):
    """What a policy sees before a layer.

    Args:
        layer: Its number.
        depth: How many there are.
        tokens: What enters it.
        hidden: Its states (B, T, C).
        before: What the layer before attended with, among the same tokens; nothing before the first layer.
        entering: What the tokens were as they entered the decoder (B, T, C).
        begun: How many image tokens of each sample entered it (B).
        normed: What the layer's first norm makes of ``hidden`` (B, T, C), if the policy asks for that.
        learns: Whether the model trains.
    """

    layer: int
    depth: int
    tokens: TokenMap
    hidden: Tensor
    before: Attending | None
    entering: Tensor
    begun: Tensor
    normed: Tensor | None = None
    learns: bool = False


class Decision(NamedTuple):
    """What a layer computes.

    Args:
        keep: Which tokens (B, T).
        returns: Whether the others go around this layer and come back, text too; otherwise all text stays, and image
            tokens that are not kept are gone from here on.
        scale: Factors of what the feed-forward part adds to each token (B, T).
        mix: The mixture of all tokens that each token becomes before the layer (B, T, T).
    """

    keep: Tensor
    returns: bool = False
    scale: Tensor | None = None
    mix: Tensor | None = None


class LayerPolicy(Edit):
    """Chooses what layers compute, while the prompt is read; the answer follows.

    Attributes:
        positions: Whether the rest keeps its positions or is numbered anew.
        looks: Whether it asks how the layer before attended.
        feeds: Whether it scales what the feed-forward part adds.
        norms: Whether it asks for states after the layer's first norm.
        skips_answers: Whether tokens of answers may go around its layers.
    """

    positions: Positions = "keep"
    looks = True
    feeds = False
    norms = False
    skips_answers = False

    @abstractmethod
    def at(self, layer: int, depth: int) -> bool:
        """Whether it decides anything before this layer computes; never before the first one if it looks."""

    @abstractmethod
    def decide(self, sight: Sight) -> Decision:
        """What this layer computes of the prompt, and of an answer that is known already."""

    def answers(self, layer: int, hidden: Tensor, normed: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Which tokens of the answer (B, Q) this layer computes, and factors as in ``Decision``; all if not said.

        Args:
            layer: Its number.
            hidden: Its states (B, Q, C).
            normed: What the layer's first norm makes of them, if that is asked for.
        """
        return None


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


def everything(crop: Crop) -> Tensor:
    """All tokens of a crop."""
    return torch.arange(len(crop.features), device=crop.features.device)
