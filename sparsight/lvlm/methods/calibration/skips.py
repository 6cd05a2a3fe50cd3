"""Which layers may go without attention, by a search (EAS, Wu et al., arXiv 2403.15226)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from blocks.edits.layers.attention_skip import AttentionSkip
from blocks.tokens.artefact import Artefact
from blocks.tokens.attending import Attending
from sparsight.lvlm.methods.calibration.searches import Calibrator
from sparsight.lvlm.methods.facts import facts_of
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.model.tower import find_parts

DRAWS = 3  # subsets of a step, the authors' number
SHARPNESS = 10.0


class AttentionSearch(Calibrator):
    """Layers for ``AttentionSkip``, by EAS's bandit: those whose attention costs the answers least.

    Every layer has a score r, from which a chance comes, softmax(10 r). A step draws a few subsets of layers by chance,
    without any twice, and leaves out their attention; a subset's reward is R = exp(-loss) of the answers. The scores of
    its layers rise by eta (R - mean R) p (1 - p). The best are taken in the end. The authors train adapters between the
    steps; here they stay as they begin, and pass on what was there.

    Args:
        count: How many layers lose their attention.
        steps: Of the search.
        eta: How much a step moves; the authors take 2, and 1 for VQA.
        seed: Of what is drawn.
    """

    def __init__(self, count: int, steps: int = 50, eta: float = 2.0, seed: int = 0) -> None:
        if count < 1 or steps < 1 or eta <= 0:
            raise ValueError(f"count and steps are from 1, eta above 0; got {count}, {steps} and {eta}")
        self.count, self.steps, self.eta, self.seed = count, steps, eta, seed
        self.scores: dict[int, float] = {}

    def begin(self, config: Any) -> None:
        """Nothing is known of any layer."""

    def see(self, attending: Attending, layer: int) -> None:
        """Nothing: losses decide."""

    @torch.no_grad()
    def artefact(self, model: Any, batches: Iterable[Mapping[str, Any]], *, template: str | None = None) -> Artefact:
        """The artefact of a model.

        Args:
            model: In eval mode.
            batches: Inputs of the model with labels.
            template: Chat template that the prompts were written with.

        Raises:
            ValueError: There are no batches, one has no labels, or fewer layers than are to go.
        """
        held = [dict(batch) for batch in batches]
        if not held or any(batch.get("labels") is None for batch in held):
            raise ValueError("AttentionSearch compares losses: give it batches with labels")
        drawn = torch.Generator().manual_seed(self.seed)
        layers = self._candidates(model)
        if self.count > len(layers):
            raise ValueError(f"AttentionSearch leaves out {self.count} attentions, and {len(layers)} can go")
        scores = torch.zeros(len(layers), dtype=torch.float64)
        for _ in range(self.steps):
            chance = (SHARPNESS * scores).softmax(0)
            subsets = [torch.multinomial(chance, self.count, generator=drawn) for _ in range(DRAWS)]
            rewards = [self.reward(model, held, [layers[int(n)] for n in subset]) for subset in subsets]
            mean = sum(rewards) / DRAWS
            for subset, reward in zip(subsets, rewards, strict=True):
                scores[subset] += self.eta * (reward - mean) * chance[subset] * (1 - chance[subset])
        self.scores = dict(zip(layers, scores.tolist(), strict=True))
        samples = sum(len(batch["input_ids"]) for batch in held)
        made_with = {**facts_of(model, template=template), "samples": samples}
        return {"kind": type(self).__name__, "made_with": made_with, "values": self.values()}

    def reward(self, model: Any, batches: Iterable[Mapping[str, Any]], layers: list[int]) -> float:
        """exp(-loss) of the answers without the attention of some layers; the loss is the mean over words."""
        losses = []
        with Recipe([AttentionSkip(layers, width=2)]).on(model):
            for batch in batches:
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                losses.append(answer_losses(model, inputs, batch["labels"])[0])
        return float((-torch.cat(losses).mean()).exp())

    def values(self) -> dict[str, Any]:
        """The best layers, and all scores."""
        best = sorted(self.scores, key=lambda layer: (-self.scores[layer], layer))[: self.count]
        return {"layers": sorted(best), "scores": {str(layer): score for layer, score in self.scores.items()}}

    def _candidates(self, model: Any) -> list[int]:
        """Layers whose attention can go."""
        found = []
        for layer in range(len(find_parts(model).layers)):
            try:
                Recipe([AttentionSkip([layer], width=2)]).check(model)
            except ValueError:
                continue
            found.append(layer)
        return found
