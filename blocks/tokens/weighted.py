"""Methods that have weights of their own, which a tuning trains or a file holds.

Shape legend: N answer tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from blocks.tokens.base import Edit


class Shape(NamedTuple):
    """Sizes of a decoder, by which weights are made.

    Args:
        depth: Layers.
        channels: Of hidden states.
        heads: Of queries.
        key_heads: Of keys.
        head_channels: Channels of a head.
        inner: Neurons of a feed-forward part.
        vision: Channels of the vision tower's states; 0 where that is not known.
    """

    depth: int
    channels: int
    heads: int
    key_heads: int
    head_channels: int
    inner: int
    vision: int = 0


# losses (N) and logits (N, V) of a batch's answers by one more pass, and the sample (N) that each belongs to
Answers = Callable[[], tuple[Tensor, Tensor, Tensor]]


class Weighted(Edit):
    """Base of methods with weights; a subclass is of another kind too, and its options have ``trained`` among them.

    Weights are made for a model when a recipe first meets it, in float32, and stay the method's own: the model's are as
    they were. A subclass computes with them in float32, and gives back the precision that it was given.

    Attributes:
        trained: File of safetensors, or a folder with one, from which they come; made afresh if there is none.
    """

    trained: str | None = None
    _held: nn.Module | None = None
    _shape: Shape | None = None

    @abstractmethod
    def make(self, shape: Shape) -> nn.Module:
        """Fresh weights for a decoder.

        Raises:
            ValueError: An option does not fit it.
        """

    def fit(self, shape: Shape) -> tuple[nn.Module, bool]:
        """The weights for a decoder, and whether they were made just now.

        Raises:
            ValueError: They were made for another one.
        """
        if self._held is not None and self._shape != shape:
            raise ValueError(
                f"{type(self).__name__} has weights for a decoder of {self._shape}, and this one has {shape}: make a "
                "new method for it"
            )
        is_new = self._held is None
        if self._held is None:
            self._held, self._shape = self.make(shape), shape
        return self._held, is_new

    @property
    def held(self) -> Any:
        """The weights.

        Raises:
            ValueError: No recipe has met a model yet.
        """
        if self._held is None:
            raise ValueError(f"{type(self).__name__} has no weights before its recipe meets a model")
        return self._held

    def begin(self, stage: int) -> None:
        """A stage that trains methods, the n-th from 0, begins or goes on, all weights learning.

        What is not to learn in it is told by ``requires_grad_``. May come several times in a stage.
        """

    def loss(self) -> Tensor | None:
        """What the weights add to the loss, by the passes since it was last asked; nothing if not said."""
        return None

    def lesson(self, answers: Answers) -> Tensor | None:
        """What is learnt of passes of its own over a batch, as a loss; nothing if not said."""
        return None

    def record(self) -> dict[str, Any]:
        """The method and its options as plain data; its weights travel in a file beside."""
        known = vars(self)
        names = [name for name in inspect.signature(type(self)).parameters if name != "trained"]
        return {"method": type(self).__name__, "options": {name: known[name] for name in names}}
