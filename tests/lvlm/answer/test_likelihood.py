"""Likelihoods with a shared prompt, against each candidate computed by itself without cache and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

from sparsight.lvlm.answer import likelihood
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.answer.whole_texts import whole_log_likelihoods
from tests.tiny_batches import TOKENS, alone_log_likelihoods, left_padded
from tests.tiny_families import FAMILIES
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm
from tests.tiny_tokens import SPECIAL, VOCABULARY


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_change_nothing(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    torch.manual_seed(2)
    shapes = [[1, 3, 2], [4, 1]]  # questions with other numbers of candidates, candidates of other lengths
    candidates = [[torch.randint(len(SPECIAL), VOCABULARY, (n,)).tolist() for n in lengths] for lengths in shapes]
    with torch.no_grad():
        wanted = alone_log_likelihoods(model, inputs, candidates, family)
        got = candidate_log_likelihoods(model, left_padded(inputs), candidates)
        whole = whole_log_likelihoods(model, left_padded(inputs), candidates)
    for found in (got, whole):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)
    assert likelihood._SHARES[model]


@pytest.mark.parametrize("broken", ["no cache", "a cache that cannot be shared", "states outside the cache"])
def test_a_model_that_cannot_share_computes_whole_texts(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Faults that a cache of a new kind may have, made in a real model."""
    model = tiny_lvlm("lfm2_vl")
    inputs = left_padded(tiny_inputs("lfm2_vl", model))
    candidates = [[[9, 30, 31], [50, 51]], [[40, 41]]]
    wanted = candidate_log_likelihoods(model, inputs, candidates)
    likelihood._SHARES.pop(model)

    def refuse(*_: Any) -> None:
        raise NotImplementedError("this layer\ncannot be reordered")

    if broken == "no cache":
        model.register_forward_hook(lambda _, __, output: setattr(output, "past_key_values", None))
    elif broken == "a cache that cannot be shared":
        monkeypatch.setattr(Cache, "reorder_cache", refuse)
    else:  # what the convolutions keep is not taken along
        monkeypatch.setattr(LinearAttentionLayer, "reorder_cache", lambda layer, _: layer.conv_states[0].zero_())
        candidates, wanted = candidates[:1] * 2, wanted[:1] * 2
        inputs = {k: v[:1].repeat(2, *[1] * (v.ndim - 1)) if k in TOKENS else v for k, v in inputs.items()}
        half = {k: v[: len(v) // 2] for k, v in inputs.items() if k not in TOKENS}
        inputs |= {k: torch.cat([v, v]) for k, v in half.items()}
        candidates = [[ids for ids in question if len(ids) > 1] for question in candidates]
    with caplog.at_level("WARNING"):
        found = [candidate_log_likelihoods(model, inputs, candidates) for _ in range(2)]
    assert len(caplog.messages) == 1 and "whole texts, which is slower" in caplog.text
    for of_time in found:
        for a, b in zip(of_time, wanted, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl", "qwen3_5", "lfm2_vl"])
def test_many_candidates_go_through_in_parts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lvlm(family)
    inputs = left_padded(tiny_inputs(family, model))
    candidates = [[[9 + n, 30 + n, *[50] * (n % 3)] for n in range(5)], [[40, 41], [60, 61, 62]]]
    whole = candidate_log_likelihoods(model, inputs, candidates)
    counts = []
    model.register_forward_pre_hook(lambda _, __, options: counts.append(len(options["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(likelihood, "MOST_ROWS", 3)
    in_parts = candidate_log_likelihoods(model, inputs, candidates)
    assert counts == [2, 3, 3, 1]  # the prompts, then candidates
    for a, b in zip(in_parts, whole, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_an_earlier_batch_with_images_changes_nothing_for_texts(family: str) -> None:
    model = tiny_lvlm(family)
    pictures = tiny_inputs(family, model)
    ids = pictures["input_ids"][:1, -4:]
    question = {k: torch.zeros_like(ids) for k in pictures if k in ("token_type_ids", "mm_token_type_ids")}
    question |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    candidates = [[[5, 6, 7], [8, 9]]]
    fresh = candidate_log_likelihoods(model, question, candidates)
    with torch.no_grad():
        model(**pictures, use_cache=False)
    assert candidate_log_likelihoods(model, question, candidates) == fresh


def test_single_tokens_need_the_prompt_alone() -> None:
    model = tiny_lvlm("llava")
    inputs = left_padded(tiny_inputs("llava", model))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = candidate_log_likelihoods(model, inputs, [[[i] for i in range(VOCABULARY)], [[5]]])
    assert len(calls) == 1
    assert sum(torch.tensor(found[0]).exp()) == pytest.approx(1, abs=1e-4)


def test_right_padding_and_empty_candidates_are_refused() -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    with pytest.raises(ValueError, match="left"):
        candidate_log_likelihoods(model, inputs, [[[5]], [[5]]])
    with pytest.raises(ValueError, match="no tokens"):
        candidate_log_likelihoods(model, left_padded(inputs), [[[5]], [[]]])
