"""One pass for all scores, a model that is left as it was, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import (
    AngularDistance,
    BlockInfluence,
    GreedyLossIncrease,
    ImageAttention,
    LayerContribution,
    LossIncrease,
    MultimodalBlockInfluence,
    score_layers,
)
from sparsight.lvlm.scores.base import StreamingScore
from tests.tiny_batches import Batch, batch_of, text_only
from tests.tiny_lvlm import tiny_lvlm

SHARED = [BlockInfluence(), MultimodalBlockInfluence(), AngularDistance(), ImageAttention(), ImageAttention("last")]


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_scores_that_can_share_a_pass_do_and_read_batches_once() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))

    def once() -> Iterator[Batch]:
        yield from (batch, batch)

    together = score_layers(model, once(), SHARED)
    hook.remove()
    assert len(calls) == 2
    assert list(together.values) == [score.name for score in SHARED]
    for score in SHARED:  # again alone, and the same objects start anew
        assert score_layers(model, [batch], [score]).values[score.name] == pytest.approx(
            together.values[score.name], abs=1e-5
        )


def test_the_table_tells_where_it_comes_from() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    facts = score_layers(model, [batch, text_only(batch)], [BlockInfluence()], origin="a test").facts
    ids, mask = batch["inputs"]["input_ids"], batch["inputs"]["attention_mask"]
    images = int((ids == 3).sum())
    assert facts["tokens"] == {"image": images, "text": 2 * (int(mask.sum()) - images)}
    assert (facts["samples"], facts["origin"]) == (4, "a test")
    assert (facts["class"], facts["layers"]) == ("LlavaForConditionalGeneration", "model.language_model.layers")
    other = {**batch, "inputs": {**batch["inputs"], "pixel_values": batch["inputs"]["pixel_values"] + 1}}
    hashes = [score_layers(model, [b], [BlockInfluence()]).facts["data_sha256"] for b in (batch, batch, other)]
    assert hashes[0] == hashes[1] != hashes[2]


class Failing(StreamingScore):
    """Fails in the middle of a pass."""

    name = "failing"

    def start(self, num_layers: int) -> None: ...
    def begin(self, tokens: Any) -> None: ...
    def values(self) -> list[float | None]:
        return []

    def observe(self, step: Any) -> None:
        if step.layer == 3:
            raise RuntimeError("stop")


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(failing: bool) -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    model.train()
    find_parts(model).layers[2].eval()
    modes = [module.training for module in model.modules()]
    hooks, forwards = hooks_of(model), ["forward" in module.__dict__ for module in model.modules()]
    separate = [LossIncrease(), GreedyLossIncrease(1), LayerContribution()]
    if failing:
        with pytest.raises(RuntimeError, match="stop"):
            score_layers(model, [batch], [*SHARED, Failing()])
        with pytest.raises(ValueError, match="with labels"):
            score_layers(model, [{"inputs": batch["inputs"]}], separate)
    else:
        score_layers(model, [batch], [*SHARED, *separate])
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == hooks
    assert ["forward" in module.__dict__ for module in model.modules()] == forwards
    assert {config._attn_implementation for config in (model.config.text_config, model.config.vision_config)} == {
        "sdpa"
    }
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off_while_scoring() -> None:
    model = tiny_lvlm("llava", attention_dropout=0.5)
    batch = batch_of("llava", model)
    in_eval = score_layers(model, [batch], [BlockInfluence()]).values
    assert score_layers(model.train(), [batch], [BlockInfluence()]).values == in_eval


def test_what_cannot_be_scored_is_refused() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    with pytest.raises(ValueError, match="there are no calibration batches"):
        score_layers(model, [], [BlockInfluence()])
    with pytest.raises(ValueError, match="at least one; got"):
        score_layers(model, [batch], [])
    with pytest.raises(ValueError, match=r"different names.*'block_influence', 'block_influence'"):
        score_layers(model, [batch], [BlockInfluence(), BlockInfluence()])
    with pytest.raises(ValueError, match=r"attention_mask is \(2, 1\)"):
        short = {**batch["inputs"], "attention_mask": batch["inputs"]["attention_mask"][:, :1]}
        score_layers(model, [{"inputs": short}], [BlockInfluence()])
    with pytest.raises(ValueError, match=r"set batching\.packing of the datamodule to false"):
        packed = {"input_ids": batch["inputs"]["input_ids"], "position_ids": torch.zeros(2, 30, dtype=torch.long)}
        score_layers(model, [{"inputs": packed}], [BlockInfluence()])
    with pytest.raises(ValueError, match="needs input_ids"):
        score_layers(model, [{"inputs": {"pixel_values": torch.zeros(1)}}], [BlockInfluence()])
    with torch.no_grad():
        find_parts(model).layers[4].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"block_influence of layers \[4.*is not a finite number"):
        score_layers(model, [batch], [BlockInfluence()])
