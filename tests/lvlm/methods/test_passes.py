"""Second passes, passes that go before, and what methods are shown, against the same done by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from blocks.edits import HeadEdit, ImageGuidance, LogitEdit, VisionAwareHeads
from blocks.tokens import (
    Attending,
    Crop,
    Decision,
    Feather,
    GemFilter,
    LayerPolicy,
    Sight,
    TokenMap,
    WithoutImages,
)
from sparsight.lvlm.methods.conformance import check_methods, left_padded
from sparsight.lvlm.methods.recipe import Recipe
from tests.tiny_methods import METHODS, tried
from tests.tiny_rows import few
from tests.tiny_tokens import IMAGE


def without(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample whose image is not there."""
    text = sample["input_ids"][:, sample["input_ids"][0] != IMAGE]
    return {"input_ids": text, "attention_mask": torch.ones_like(text)}


def test_guidance_is_taken_from_a_pass_without_the_image() -> None:
    model, (sample, _) = tried("llava")
    plain, places = without(sample), (sample["input_ids"][0] != IMAGE).nonzero()[:, 0]
    with torch.no_grad():
        one = model(**sample).logits
        other = model(**plain, position_ids=places[None]).logits
        with Recipe([ImageGuidance(2.0)]).on(model):
            found = model(**sample).logits
            labels = sample["input_ids"].index_fill(1, torch.arange(sample["input_ids"].shape[1] - 2), -100)
            answer = model(**sample, labels=labels)
    torch.testing.assert_close(found[:, places], 2 * one[:, places] - other, rtol=1e-4, atol=1e-4)
    wanted = torch.nn.functional.cross_entropy(answer.logits[0, -3:-1], labels[0, -2:])
    torch.testing.assert_close(answer.loss, wanted)


class Heard(HeadEdit):
    """Remembers what heads answer at the last token."""

    def __init__(self) -> None:
        self.found: dict[int, Tensor] = {}

    def edit(self, heads: Tensor, layer: int, queries: TokenMap) -> Tensor:
        self.found[layer] = heads[:, -1]
        return heads


def test_heads_are_compared_with_a_pass_without_the_image() -> None:
    model, (sample, _) = tried("llava")
    heard, compared = Heard(), VisionAwareHeads(2.0, first_layer=5)
    with torch.no_grad():
        with Recipe([WithoutImages(), heard]).on(model):
            model(**sample)
        others = dict(heard.found)
        with Recipe([heard]).on(model):
            model(**sample)
        factor = compared.scales(heard.found[5], others[5])
        with Recipe([compared, heard]).on(model):
            model(**sample)
    assert set(factor[0].tolist()) == {1.0, 2.0}
    with torch.no_grad(), Recipe([heard]).on(model):
        model(**sample)
        before = heard.found[5]
        with pytest.raises(ValueError, match="has a recipe already"), Recipe([compared]).on(model):
            pass
    again = Heard()
    with torch.no_grad(), Recipe([compared, again]).on(model):
        model(**sample)
    torch.testing.assert_close(again.found[5], before * factor[..., None])


def test_the_first_pass_asks_the_layer_that_the_whole_model_has() -> None:
    model, samples = tried("llava")
    shown: list[Tensor] = []

    class Seeing(GemFilter):
        def reduce(self, crop: Crop) -> Any:
            raise AssertionError

        def scores(self, crop: Crop) -> Tensor:
            assert crop.asked is not None
            shown.append(crop.asked)
            return super().scores(crop)

    class Taps(Seen):
        pass

    policy = Taps(4)
    batch = left_padded(samples)
    with torch.no_grad():
        with Recipe([Seeing(3, 0.5)]).on(model):
            model(**batch)
        with Recipe([policy]).on(model):
            model(**batch)
    for sample, asked in enumerate(shown):
        visual = policy.told.keys.visual[sample]
        torch.testing.assert_close(asked, policy.told.last().logits()[sample, :, 0, visual])


class Seen(LayerPolicy):
    """Remembers what it was shown."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def at(self, layer: int, depth: int) -> bool:
        return layer == self.layer

    def decide(self, sight: Sight) -> Decision:
        assert sight.before is not None
        self.told: Attending = sight.before
        return Decision(torch.ones_like(sight.tokens.present))


@pytest.mark.parametrize("family", few(["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"], "qwen3_vl"))
def test_queries_and_keys_are_unturned_to_what_was_projected(family: str) -> None:
    model, (sample, _) = tried(family)
    policy, heard = Seen(3), {}
    layer = model.get_decoder().layers[2].self_attn
    hooks = [
        (layer.q_norm if "q_norm" in dict(layer.named_children()) else layer.q_proj).register_forward_hook(
            lambda _, __, out: heard.setdefault("q", out)
        )
    ]
    with torch.no_grad(), Recipe([policy]).on(model):
        model(**sample)
    for hook in hooks:
        hook.remove()
    query = policy.told.unturned().query
    wanted = heard["q"].reshape(1, query.shape[2], -1, query.shape[3]).transpose(1, 2)
    if family == "gemma3":
        wanted = heard["q"].reshape(query.shape)
    torch.testing.assert_close(query, wanted, rtol=1e-4, atol=1e-4)
    assert Feather([3, 4]).decide(Sight(3, 6, policy.told.queries, query, policy.told, query, query)).keep.any()


class Nearer(LogitEdit):
    """Adds a little to logits of near keys, of each head another one."""

    def bias(self, attending: Attending) -> Tensor:
        gap = (attending.queries.place[:, :, None] - attending.keys.place[:, None])[:, None]
        slope = 0.1 * torch.arange(1, attending.query.shape[1] + 1)[:, None, None]
        return -slope * gap.clamp(min=0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_what_is_added_to_logits_goes_with_the_mask(kernel: str) -> None:
    model, samples = tried("llava")
    model.set_attn_implementation(kernel)
    check_methods(lambda: [Nearer(), *METHODS["var"]()], model, samples)
    told = Seen(3)
    with torch.no_grad(), Recipe([Nearer(), told]).on(model):
        model(**samples[0])
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad(), Recipe([Nearer(), Seen(3)]).on(eager):
        maps = eager(**samples[0], output_attentions=True).attentions[2]
    logits = told.told.logits() + Nearer().bias(told.told)
    torch.testing.assert_close(maps, logits.masked_fill(~told.told.allowed, -1e9).softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["five", "fast_v", "aki", "s2_attention", "dual_softmax", "vmtc", "lacing"])
def test_flex_attention_reads_masks_of_blocks(name: str) -> None:
    model, samples = tried("llava")
    model.set_attn_implementation({"text_config": "flex_attention"})
    with torch.compiler.set_stance("force_eager"):  # torch 2.15 cannot compile it for a CPU where many sizes change
        check_methods(METHODS[name], model, samples, trains=False)


@pytest.mark.slow
def test_flex_attention_is_compiled_with_a_mask_of_a_method() -> None:
    model, samples = tried("llava")
    logits = []
    for kernel in ("sdpa", "flex_attention"):
        model.set_attn_implementation({"text_config": kernel})
        with torch.no_grad(), Recipe(METHODS["aki"]()).on(model):
            logits.append(model(**samples[0]).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_kernels_that_add_nothing_to_logits_say_so() -> None:
    model, _ = tried("llava")
    model.set_attn_implementation({"text_config": "flex_attention"})
    with pytest.raises(ValueError, match="Nearer adds to logits, which flex_attention"), Recipe([Nearer()]).on(model):
        pass
    model.set_attn_implementation("sdpa")
