"""What an answer's first word loses when tokens may not look at others around each layer (arXiv 2411.18620)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from blocks.edits.masks.knockout import Knockout, Part
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.answer_losses import IGNORED
from sparsight.lvlm.model.tower import Parts
from sparsight.lvlm.scores.base import SeparateScore
from sparsight.lvlm.scores.tokens import CalibrationSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KnockoutCurve(SeparateScore):
    """Share of the probability of answers' first words that is lost when some tokens may not look at others.

    Measured with the edges cut in a window of layers around each one; a pass of the model for each layer.

    Args:
        looking: Who may not look: ``system``, ``image``, ``question`` or ``last``, the last token of the prompt.
        seen: At whom.
        window: Number of layers; the paper takes nine.
    """

    def __init__(self, looking: Part = "question", seen: Part = "image", window: int = 9) -> None:
        if window < 1:
            raise ValueError(f"window is from 1; got {window}")
        Knockout(looking, seen, [0])
        self.looking, self.seen, self.window = looking, seen, window

    @property
    def name(self) -> str:
        """Tells which edges."""
        return f"knockout_{self.looking}_{self.seen}"

    def measure(self, model: PreTrainedModel, parts: Parts, batches: CalibrationSet) -> Sequence[float]:
        """Mean over samples with answers."""
        from sparsight.lvlm.methods.recipe import Recipe

        depth = len(parts.layers)
        before, reach = self.window // 2, self.window - self.window // 2
        lost, count = torch.zeros(depth), 0
        for batch in batches:
            if batch.labels_BT is None:
                raise ConfigurationError(f"{self.name} asks for answers, which training batches have")
            plain = _first_words(model, batch.inputs, batch.labels_BT)
            count += len(plain)
            for layer in range(depth):
                cut = Knockout(self.looking, self.seen, list(range(max(layer - before, 0), min(layer + reach, depth))))
                with Recipe([cut]).on(model):
                    now = _first_words(model, batch.inputs, batch.labels_BT)
                lost[layer] += (1 - (now - plain).exp()).sum().cpu()
        if not count:
            raise ConfigurationError(f"{self.name} asks for answers, and the calibration batches have none")
        return (lost / count).tolist()


def _first_words(model: Any, inputs: dict[str, Any], labels_BT: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the first words of answers, of samples that have one."""
    told = labels_BT != IGNORED
    first_B = told.int().argmax(1)
    rows = (told.any(1) & (first_B > 0)).nonzero()[:, 0]
    logits = model(**inputs, labels=labels_BT, use_cache=False).logits[rows, first_B[rows] - 1].float()
    return logits.log_softmax(-1).gather(1, labels_BT[rows, first_B[rows]][:, None])[:, 0]
