"""Views of what layers do with images, against full maps and states."""

from __future__ import annotations

import copy

import pytest
import torch

from blocks.edits import Knockout
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.scores import (
    AttentionRank,
    EffectiveImageTokens,
    HeadDivergence,
    ImageRedundancy,
    KnockoutCurve,
    score_layers,
)
from tests.tiny_batches import batch_of, one_by_one, padded_left
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tokens import IMAGE


def test_views_are_those_of_the_full_maps() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    scores = [EffectiveImageTokens("last"), HeadDivergence("text"), AttentionRank("text"), ImageRedundancy()]
    wanted: dict[str, list[list[float]]] = {score.name: [[] for _ in range(6)] for score in scores}
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    for single in one_by_one(batch):
        image = single["inputs"]["input_ids"][0] == IMAGE
        with torch.no_grad():
            out = eager(**single["inputs"], output_attentions=True, use_cache=False)
            leaving: list[torch.Tensor] = []
            hooks = [
                layer.register_forward_hook(lambda _, __, found, kept=leaving: kept.append(found))
                for layer in eager.get_decoder().layers
            ]
            eager(**single["inputs"], use_cache=False)
            for hook in hooks:
                hook.remove()
        for layer, maps in enumerate(part[0] for part in out.attentions):
            on_image = maps[:, -1, image] / maps[:, -1, image].sum(-1, keepdim=True)
            tokens = [float((-(row * row.log()).sum()).exp()) for row in on_image]
            wanted["effective_image_tokens_last"][layer].append(sum(tokens) / len(tokens))
            rows = maps[:, ~image].clamp(min=1e-30)
            mean = rows.mean(0)
            apart = -(mean * mean.log()).sum(-1) + (rows * rows.log()).sum(-1).mean(0)
            wanted["head_divergence_text"][layer].append(float(apart.mean()))
            off = maps.masked_fill(torch.eye(maps.shape[-1], dtype=torch.bool), 0.0)[:, ~image]
            ranks = [int(torch.linalg.matrix_rank(each)) for each in off]
            wanted["attention_rank_text"][layer].append(sum(ranks) / len(ranks) / int((~image).sum()))
            states = torch.nn.functional.normalize(leaving[layer][0, image], dim=-1)
            cosine = [float(states[a] @ states[b]) for a in range(16) for b in range(16) if a != b]
            wanted["image_redundancy"][layer].append(sum(cosine) / len(cosine))
    found = score_layers(model, [padded_left(batch)], scores).values
    for name, by_layer in wanted.items():
        assert found[name] == pytest.approx([sum(each) / len(each) for each in by_layer], abs=2e-4), name


def test_knocked_out_edges_cost_the_first_word() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    found = score_layers(model, [padded_left(batch)], [KnockoutCurve("last", "image", window=3)]).values
    wanted = torch.zeros(6)
    for single in one_by_one(batch):
        labels = single["labels"]
        first = int((labels[0] != -100).int().argmax())
        probability = []
        for layers in (None, *([n for n in range(6) if abs(n - layer) <= 1] for layer in range(6))):
            with torch.no_grad():
                if layers is None:
                    logits = model(**single["inputs"]).logits
                else:
                    with Recipe([Knockout("last", "image", layers)]).on(model):
                        logits = model(**single["inputs"], labels=labels).logits
            probability.append(float(logits[0, first - 1].softmax(-1)[labels[0, first]]))
        wanted += torch.tensor([1 - p / probability[0] for p in probability[1:]]) / 2
    assert found["knockout_last_image"] == pytest.approx(wanted.tolist(), abs=1e-3)
    with pytest.raises(ConfigurationError, match="asks for answers"):
        score_layers(model, [{"inputs": batch["inputs"]}], [KnockoutCurve()])
