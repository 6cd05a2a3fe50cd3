"""A recipe against the same mathematics written down layer by layer, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from blocks.edits import AttentionEdit, HeadAblation, MaskProgram
from blocks.edits.base import Rows, Where
from blocks.tokens import DivPrune, FasterVLM, FastV, PyramidDrop, RandomTokens, TokenMap, UniformTokens
from blocks.tokens.policies.last_token import LastTokenPolicy
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.answer.whole_texts import whole_log_likelihoods
from sparsight.lvlm.methods.conformance import left_padded
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.answer_losses import answer_losses
from tests.tiny_batches import batch_of, one_by_one, padded_left
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_methods import METHODS, tried
from tests.tiny_tokens import IMAGE


class Fixed(LastTokenPolicy):
    """Keeps the image tokens in even or odd columns of the first sample's map."""

    def __init__(self, layers: list[int], positions: Any) -> None:
        self.layers, self.positions = layers, positions

    def at(self, layer: int, depth: int) -> bool:
        return layer in self.layers

    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        return ~tokens.visual | (tokens.column % 2 == 0)


def by_hand(model: Any, sample: dict[str, Any], *, at: int, renumber: bool) -> Tensor:
    """Logits of a LLaVA on Llama that loses the image tokens of odd columns before a layer, at the entrance if 0."""
    inner, ids = model.model, sample["input_ids"]
    embeds = inner.get_input_embeddings()(ids)
    features = torch.cat(list(inner.get_image_features(sample["pixel_values"]).pooler_output))
    embeds = embeds.masked_scatter((ids == IMAGE)[..., None], features)
    places = torch.arange(ids.shape[1])
    is_image = ids[0] == IMAGE
    odd = is_image & (((is_image.cumsum(0) - 1) % 4) % 2 == 1)
    hidden, positions = embeds, places
    for number, layer in enumerate(inner.language_model.layers):
        if number == at:
            hidden = hidden[:, ~odd]
            positions = torch.arange(hidden.shape[1]) if renumber else places[~odd]
        count = hidden.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        tables = inner.language_model.rotary_emb(hidden, positions[None])
        hidden = layer(hidden, attention_mask=mask, position_embeddings=tables, position_ids=positions[None])
    return model.lm_head(inner.language_model.norm(hidden))


@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("at", [1, 3])
def test_dropped_tokens_are_gone_from_a_layer_on(at: int, positions: str) -> None:
    model, (sample, _) = tried("llava")
    with torch.no_grad():
        wanted = by_hand(model, sample, at=at, renumber=positions == "renumber")
        with Recipe([Fixed([at], positions)]).on(model):
            found = model(**sample).logits
    is_kept = (found != model.lm_head.weight.new_zeros(1)).any(-1)[0]
    after = sample["input_ids"][0].tolist().index(IMAGE) + 16  # text behind the image
    torch.testing.assert_close(found[:, after:], wanted[:, after - 8 :])
    assert found.shape[:2] == sample["input_ids"].shape and is_kept[after:].all()


class EvenColumns(RandomTokens):
    """A reducer of the same tokens."""

    def reduce(self, crop: Any) -> Any:
        return super().reduce(crop)._replace(keep=torch.arange(0, len(crop.features), 2))


@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_reduced_images_are_short_images(positions: Any) -> None:
    model, (sample, _) = tried("llava")
    with torch.no_grad():
        wanted = by_hand(model, sample, at=0, renumber=positions == "renumber")
        with Recipe([EvenColumns(positions=positions)]).on(model):
            found = model(**sample).logits
    after = sample["input_ids"][0].tolist().index(IMAGE) + 16
    torch.testing.assert_close(found[:, after:], wanted[:, after - 8 :])


def squared(weights: Tensor) -> Tensor:
    return weights.square() / weights.square().sum(-1, keepdim=True)


class Sharper(AttentionEdit):
    """Squares attention weights."""

    def rows(self, queries: TokenMap) -> Tensor:
        return torch.arange(1, queries.kind.shape[1])

    def weights(self, rows: Rows) -> Tensor:
        return squared(rows.old)


def test_changed_weights_are_those_of_a_kernel_that_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = tried("llava")
    batch = left_padded(samples)
    with torch.no_grad(), Recipe([Sharper()]).on(model):
        found = model(**batch).logits

    def sharp(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any) -> Any:
        groups = module.num_key_value_groups
        logits = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling + mask
        weights = logits.softmax(-1)
        weights = torch.cat([weights[:, :, :1], squared(weights[:, :, 1:])], 2)
        return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharp)
    eager = tiny_lvlm("llava")
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = eager(**batch).logits
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(found[seen], wanted[seen], rtol=1e-4, atol=1e-4)


class Watched(FastV):
    """Remembers what it was shown."""

    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        self.tokens, self.attention = tokens, attention
        return super().keep(tokens, attention)


def test_policies_see_the_last_token_of_each_prompt() -> None:
    """Right padding, left padding and an answer behind the prompt change nothing of it."""
    eager = copy.deepcopy(tried("llava")[0])
    eager.set_attn_implementation("eager")
    model, samples = tried("llava")
    batch, policy = left_padded(samples), Watched(3)
    with torch.no_grad():
        maps = eager(**batch, output_attentions=True).attentions[2]
        with Recipe([policy]).on(model):
            model(**batch)
    torch.testing.assert_close(policy.attention, maps[:, :, -1])
    labels = torch.full_like(samples[0]["input_ids"], -100)
    labels[:, -2:] = samples[0]["input_ids"][:, -2:]
    with torch.no_grad(), Recipe([policy]).on(model):
        maps = eager(**samples[0], output_attentions=True).attentions[2]
        model(**samples[0], labels=labels)
    torch.testing.assert_close(policy.attention, maps[:, :, -3])


def test_reducers_see_the_towers_class_token_of_every_crop() -> None:
    model, samples = tried("llava_next")
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")

    class Seeing(FasterVLM):
        def reduce(self, crop: Any) -> Any:
            shown.append(crop.attention)
            return super().reduce(crop)

    shown: list[Tensor] = []
    with torch.no_grad(), Recipe([Seeing(0.5)]).on(model):
        model(**samples[0])
    maps = tower(samples[0]["pixel_values"][0], output_attentions=True).attentions[-2][:, :, 0, 1:]
    assert len(shown) == 3  # the whole image and its halves
    for crop, wanted in zip(shown, maps, strict=True):
        torch.testing.assert_close(crop, wanted)


@pytest.mark.parametrize("name", ["random", "pyramid_drop", "five", "lacing"])
def test_likelihoods_behind_a_shared_prompt_are_those_of_whole_texts(name: str, caplog: Any) -> None:
    model = tiny_lvlm("llava")
    _, samples = tried("llava")
    batch, candidates = left_padded(samples), [[[30, 31, 32], [40], [50, 51]], [[60, 61], [70, 71, 72]]]
    plain = candidate_log_likelihoods(model, batch, candidates)
    with Recipe(METHODS[name]()).on(model):
        shared = candidate_log_likelihoods(model, batch, candidates)
        whole = whole_log_likelihoods(model, batch, candidates)
    assert not caplog.messages
    for one, other, before in zip(shared, whole, plain, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
        assert one != pytest.approx(before, abs=1e-2)


@pytest.mark.parametrize("name", ["random", "pyramid_drop", "five"])
def test_losses_of_a_padded_batch_are_those_of_its_samples(name: str) -> None:
    model, _ = tried("llava")
    batch = batch_of("llava", model)
    with torch.no_grad(), Recipe(METHODS[name]()).on(model):
        alone = torch.cat([answer_losses(model, one["inputs"], one["labels"])[0] for one in one_by_one(batch)])
        for padded in (batch, padded_left(batch)):
            torch.testing.assert_close(answer_losses(model, padded["inputs"], padded["labels"])[0], alone)


def test_text_without_images_is_read_as_ever() -> None:
    model, _ = tried("llava")
    text = {"input_ids": torch.tensor([[1, 40, 41, 42]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        plain = model(**text).logits
        with Recipe([DivPrune(), FastV(3), METHODS["var"]()[0]]).on(model):
            torch.testing.assert_close(model(**text).logits, plain)


# -- what is refused -----------------------------------------------------------------------------------------------


class Grid(MaskProgram):
    needs_grid = True

    def allow(self, allowed: Tensor, queries: TokenMap, keys: TokenMap, where: Where) -> Tensor:
        return allowed


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ([DivPrune(), UniformTokens()], "DivPrune and UniformTokens both reduce images"),
        ([FastV(), PyramidDrop()], "FastV keep, PyramidDrop renumber"),
        ([PyramidDrop(), RandomTokens()], "PyramidDrop numbers positions anew, RandomTokens keeps gaps"),
        ([METHODS["vision_zip"]()[0], Grid()], "Grid needs the grid that VisionZip merges away"),
        ([object()], "object is of none of the kinds"),
    ],
)
def test_methods_that_exclude_each_other_are_named(methods: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Recipe(methods)


@pytest.mark.parametrize(
    ("family", "methods", "told"),
    [
        ("llava", [FastV(40)], "FastV is about none of the 6 layers"),
        ("llava", [FastV(3), PyramidDrop([3], positions="keep")], "both drop tokens before layer 3"),
        ("llava", [HeadAblation({9: [0]})], r"HeadAblation names layers \[9\]"),
        ("qwen3_5", [FastV(2)], "FastV needs attention in layer 1, which is of kind linear_attention"),
        ("lfm2_vl", [HeadAblation({0: [0]})], "HeadAblation needs attention in layer 0, which is of kind conv"),
        ("perception_lm", [FastV()], "recipes do not serve perception_lm"),
    ],
)
def test_what_a_model_does_not_have_is_named(family: str, methods: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told), Recipe(methods).on(tried(family)[0]):
        pass


def test_ways_to_go_on_that_would_be_wrong_are_refused() -> None:
    model, samples = tried("llava")
    with torch.no_grad(), Recipe([FastV(3)]).on(model):
        for options, told in (
            ({"use_cache": False}, "decide anew at every step"),
            ({"num_beams": 2}, "num_beams"),
            ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ):
            with pytest.raises(ValueError, match=told):
                model.generate(**samples[0], max_new_tokens=2, **options)
        with pytest.raises(ValueError, match="has a recipe already"), Recipe([FastV(2)]).on(model):
            pass
        with pytest.raises(ValueError, match="do not serve packed rows"):
            model(input_ids=torch.tensor([[5, 6, 7]]), position_ids=torch.tensor([[0, 1, 0]]))
        with pytest.raises(ValueError, match="as input_ids"):
            model(inputs_embeds=torch.zeros(1, 3, 32))
        held = model(**samples[0]).past_key_values
        with pytest.raises(ValueError, match="came after the answer began"):
            model(**samples[0], past_key_values=held)
        with pytest.raises(ValueError, match="holds 1 samples"):
            model(input_ids=torch.tensor([[5], [6]]), past_key_values=held)
        with pytest.raises(ValueError, match="cannot be cropped"):
            held.crop(-1)
    assert not {"forward", "generate"} & set(vars(model))


def test_an_exception_leaves_no_trace() -> None:
    model, samples = tried("llava")
    with torch.no_grad():
        before = model(**samples[0]).logits
        with pytest.raises(KeyboardInterrupt), Recipe(METHODS["five"]()).on(model):
            model(**samples[0])
            raise KeyboardInterrupt
        assert torch.equal(model(**samples[0]).logits, before)
