"""Scores by how far a layer turns the hidden states that pass through it.

Shape legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from typing import Literal, get_args

from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.scores.base import LayerPass, SampleMeans, StreamingScore, mean_of
from sparsight.lvlm.scores.geometry import Directions
from sparsight.lvlm.scores.tokens import TokenKinds

AngleTokens = Literal["last", "all", "image", "text"]


class ChangeScore(StreamingScore):
    """A mean over samples of something about the change that each layer makes."""

    def start(self, num_layers: int) -> None:
        """Begin anew."""
        self.means = SampleMeans(num_layers)

    def begin(self, tokens: TokenKinds) -> None:
        """A new batch is about to pass."""
        self.tokens = tokens

    def observe(self, step: LayerPass) -> None:
        """Add what ``change`` says of a layer."""
        self.means.add(step.layer, *self.change(step))

    @abstractmethod
    def change(self, step: LayerPass) -> tuple[Tensor, Tensor]:
        """The measure for each sample (B,), and whether the sample counts (B,)."""

    def values(self) -> list[float | None]:
        """Means over samples."""
        return self.means.values("tokens")


class BlockInfluence(ChangeScore):
    """1 - cos between a layer's input and output: mean over a sample's tokens, then over samples.

    ShortGPT (arXiv 2403.03853), as used for image-text models in arXiv 2412.12785.
    """

    name = "block_influence"

    def change(self, step: LayerPass) -> tuple[Tensor, Tensor]:
        """1 - cos of each sample."""
        return mean_of(step.turn.cosine_distance_BT, self.tokens.present_BT)


class MultimodalBlockInfluence(ChangeScore):
    """Block influence with equal weight for image and text: hundreds of image tokens do not drown a short question.

    Samples with tokens of one kind only have those (arXiv 2412.12785, with the true places of image tokens).
    """

    name = "multimodal_block_influence"

    def change(self, step: LayerPass) -> tuple[Tensor, Tensor]:
        """1 - cos of each sample."""
        of_image_B, has_image_B = mean_of(step.turn.cosine_distance_BT, self.tokens.image_BT)
        of_text_B, has_text_B = mean_of(step.turn.cosine_distance_BT, self.tokens.text_BT)
        kinds_B = has_image_B.float() + has_text_B.float()
        return (of_image_B + of_text_B) / kinds_B.clamp(min=1), kinds_B > 0


class AngularDistance(ChangeScore):
    """Angle, divided by pi, between the input of a layer and the output of the last layer of a window that it begins.

    The mean of the tokens' angles, not the angle of a mean cosine (Gromov et al., arXiv 2403.17887, equation 6, for the
    last token of a sample).

    Args:
        tokens: Which tokens of a sample: ``last``, ``all``, ``image`` or ``text``.
        window: Number of layers n; with more than one, a layer's number is that of layers l to l + n - 1, and the last
            n - 1 layers begin no window.
    """

    def __init__(self, tokens: AngleTokens = "last", window: int = 1) -> None:
        if tokens not in get_args(AngleTokens):
            raise ValueError(f"tokens is one of {', '.join(get_args(AngleTokens))}; got {tokens!r}")
        if window < 1:
            raise ValueError(f"window is a number of layers from 1; got {window}")
        self.tokens_kind = tokens
        self.window = window

    @property
    def name(self) -> str:
        """Tokens, and the window if it is one."""
        return f"angular_distance_{self.tokens_kind}" + (f"_window{self.window}" if self.window > 1 else "")

    def start(self, num_layers: int) -> None:
        """Begin anew.

        Raises:
            ConfigurationError: The window is longer than the decoder.
        """
        if self.window > num_layers:
            raise ConfigurationError(f"window is {self.window}, but the decoder has {num_layers} layers")
        super().start(num_layers - self.window + 1)
        self.beyond = self.window - 1
        self.inputs: deque[Tensor] = deque(maxlen=self.window)

    def begin(self, tokens: TokenKinds) -> None:
        """A new batch is about to pass."""
        super().begin(tokens)
        self.inputs.clear()

    def observe(self, step: LayerPass) -> None:
        """Compare what leaves this layer with what entered the first one of its window."""
        self.inputs.append(step.entering_BTC)
        if len(self.inputs) == self.window:
            self.means.add(step.layer - self.beyond, *self.change(step))

    def change(self, step: LayerPass) -> tuple[Tensor, Tensor]:
        """Angle of each sample."""
        turn = step.turn if self.window == 1 else Directions.between(self.inputs[0], step.leaving_BTC)
        return mean_of(turn.angle_BT, self.tokens.of_kind(self.tokens_kind))

    def values(self) -> list[float | None]:
        """Means over samples, ``None`` for the layers that begin no window."""
        return [*self.means.values(f"{self.tokens_kind} tokens"), *[None] * self.beyond]
