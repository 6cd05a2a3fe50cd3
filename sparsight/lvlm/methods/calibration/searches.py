"""Calibrations: what methods need to know of a model, found on prompts and kept as an artefact.

Shape legend: B samples, L layers, h heads, N image tokens of a sample, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks.edits.base import LogitEdit
from blocks.tokens.artefact import Artefact
from blocks.tokens.attending import Attending
from blocks.tokens.base import share
from blocks.tokens.policies.fit_prune import measures
from blocks.tokens.token_map import ANSWER, TokenMap
from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text
from sparsight.lvlm.methods.facts import facts_of
from sparsight.lvlm.methods.recipe import Recipe


class Watch(LogitEdit):
    """Shows every attention of a prompt to a function, and changes nothing."""

    def __init__(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator

    def rows(self, queries: TokenMap) -> Tensor:
        """None."""
        return torch.arange(0)

    def bias(self, attending: Attending) -> Tensor:
        """Nothing."""
        return attending.query.new_zeros(1, 1, 1, 1)

    def measure(self, attending: Attending, layer: int) -> None:
        """Show it."""
        self._calibrator.see(attending, layer)


class Calibrator(ABC):
    """Looks at prompts of a model and makes an artefact."""

    @abstractmethod
    def begin(self, config: Any) -> None:
        """A text model of this configuration is about to read prompts."""

    @abstractmethod
    def see(self, attending: Attending, layer: int) -> None:
        """One layer reads a batch of prompts."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """What was found, as plain data."""

    @torch.no_grad()
    def artefact(self, model: Any, batches: Iterable[Mapping[str, Any]], *, template: str | None = None) -> Artefact:
        """The artefact of a model.

        Args:
            model: In eval mode.
            batches: Inputs of the model, with labels where answers follow the prompts.
            template: Chat template that the prompts were written with.

        Raises:
            ValueError: There are no batches, or none with images.
        """
        self.begin(model.config.get_text_config(decoder=True))
        samples = 0
        with Recipe([Watch(self)]).on(model):
            for batch in batches:
                model(**batch)
                samples += len(batch["input_ids"])
        if not samples:
            raise ValueError(f"{type(self).__name__} saw no prompts")
        made_with = {**facts_of(model, template=template), "samples": samples}
        return {"kind": type(self).__name__, "made_with": made_with, "values": self.values()}

    def write(self, model: Any, batches: Iterable[Mapping[str, Any]], file: Path, **options: Any) -> Artefact:
        """Write the artefact, and return it."""
        found = self.artefact(model, batches, **options)
        write_text(file, json_text(found))
        return found


class FitPruneShares(Calibrator):
    """FitPrune's search (arXiv 2409.10197): how many image tokens each layer may lose for a share of the computation.

    For a tolerance alpha, a layer may lose of each sample the tokens that are among the least attended by the question
    and among the least attended by images, each up to alpha of that attention, and that no earlier layer lost; the
    number is the mean over samples, rounded down. The smallest alpha that saves enough is found by bisection to 0.01.

    Args:
        ratio: Share of the decoder's computation on prompts that stays.
    """

    def __init__(self, ratio: float = 0.5) -> None:
        self.ratio = share(ratio, name="ratio")

    def begin(self, config: Any) -> None:
        """Nothing was seen."""
        self.width, self.inner, self.depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        self.found: list[list[tuple[Tensor, Tensor]]] = []  # by sample and layer, what question and images give (N)
        self.lengths: list[int] = []
        self.batch, self.last = 0, -1  # first sample of the batch that passes, and the layer that it has passed

    def see(self, attending: Attending, layer: int) -> None:
        """Both measures of each image token."""
        cross, own = measures(attending, attending.queries)
        if not self.found or layer <= self.last:
            self.batch = len(self.found)
            self.found += [[] for _ in cross]
            self.lengths += attending.queries.present.sum(1).tolist()
        self.last = layer
        for sample, visual in enumerate(attending.queries.visual):
            while len(self.found[self.batch + sample]) < layer:  # layers with a state in place of attention lose none
                self.found[self.batch + sample].append((torch.zeros(0), torch.zeros(0)))
            told = cross[sample, visual].double().cpu(), own[sample, visual].double().cpu()
            self.found[self.batch + sample].append(told)

    def counts(self, alpha: float) -> list[int]:
        """How many tokens each layer loses."""
        total = [0] * self.depth
        seen = [sample for sample in self.found if any(len(cross) for cross, _ in sample)]
        for sample in seen:
            left = torch.ones(max(len(cross) for cross, _ in sample), dtype=torch.bool)
            for layer, (cross, own) in enumerate(sample):
                if not len(cross):
                    continue
                leaving = _least(cross, alpha, left) & _least(own, alpha, left)
                total[layer] += int(leaving.sum())
                left &= ~leaving
        return [count // max(len(seen), 1) for count in total]

    def cost(self, counts: Sequence[int]) -> float:
        """Multiplications of the decoder, for the mean prompt."""
        length, total = sum(self.lengths) / len(self.lengths), 0.0
        for count in counts:
            total += 4 * length * self.width**2 + 2 * length**2 * self.width + 3 * length * self.width * self.inner
            length -= count
        return total

    def values(self) -> dict[str, Any]:
        """Shares of image tokens that each layer loses, and the tolerance."""
        sizes = [len(cross) for sample in self.found for cross, _ in sample[-1:] if len(cross)]
        if not sizes:
            raise ValueError("FitPruneShares saw no images")
        low, high = 0.0, 1.0
        while high - low > 0.01:
            middle = (low + high) / 2
            enough = self.cost(self.counts(middle)) <= self.ratio * self.cost([0] * self.depth)
            low, high = (low, middle) if enough else (middle, high)
        number = sum(sizes) / len(sizes)
        return {"drop": [min(count / number, 0.99) for count in self.counts(high)], "alpha": high, "ratio": self.ratio}


def _least(given: Tensor, alpha: float, left: Tensor) -> Tensor:
    """The least attended of those left, as many as hold at most ``alpha`` of what all of these are given."""
    order = given.masked_fill(~left, float("inf")).argsort()
    mass = given.masked_fill(~left, 0.0)[order].cumsum(0)
    inside = (mass <= alpha * mass[-1]) & left[order]
    return torch.zeros_like(left).index_put((order,), inside)


class InactiveHeadVotes(Calibrator):
    """YOPO's inactive heads (arXiv 2410.06169): those that few samples use to look at images.

    A head is active for a sample if its attention on images, over all rows, is more than a share of that on text. It is
    inactive if it is active for at most ``votes`` of the samples.

    Args:
        threshold: That share; the authors take 0.2, 0.077 and 0.035 for 10, 20 and 30 heads a layer of LLaVA-13B.
        votes: Share of samples.
        first_layer: Heads of layers before are never inactive.
    """

    def __init__(self, threshold: float = 0.077, votes: float = 0.4, first_layer: int = 2) -> None:
        self.threshold, self.votes, self.first_layer = threshold, votes, first_layer

    def begin(self, config: Any) -> None:
        """Nothing was seen."""
        self.active: dict[int, list[Tensor]] = {}

    def see(self, attending: Attending, layer: int) -> None:
        """Which heads look at images, sample by sample."""
        tokens = attending.queries
        rows = tokens.present & (tokens.kind != ANSWER)
        received = attending.received(rows, over="none")
        on_image = (received * tokens.visual[:, None]).sum(-1)
        on_text = (received * (rows & ~tokens.visual)[:, None]).sum(-1)
        has_image = tokens.visual.any(1)
        active = on_image / on_text.clamp(min=1e-12) > self.threshold
        self.active.setdefault(layer, []).append(active[has_image].cpu())

    def values(self) -> dict[str, Any]:
        """Inactive heads by layer."""
        shares = {layer: torch.cat(seen).float().mean(0) for layer, seen in self.active.items()}
        if not shares or any(bool(part.isnan().any()) for part in shares.values()):
            raise ValueError("InactiveHeadVotes saw no images")
        return {
            "heads": {
                str(layer): (part <= self.votes).nonzero()[:, 0].tolist()
                for layer, part in shares.items()
                if layer >= self.first_layer and bool((part <= self.votes).any())
            }
        }
