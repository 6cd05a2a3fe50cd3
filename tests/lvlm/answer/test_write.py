"""Greedy writing, whatever settings come with the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from sparsight.lvlm.answer.write import Written, write_answers
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tokens import CHAT_END, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_lvlm("llava").eval()


def prompt(tokenizer: Any) -> dict[str, torch.Tensor]:
    ids = torch.tensor([tokenizer("What is in this picture?")["input_ids"]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def by_hand(model: Any, inputs: dict[str, torch.Tensor], count: int) -> list[int]:
    """Tokens after the prompt, each the likeliest of a whole forward pass."""
    ids = inputs["input_ids"]
    for _ in range(count):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return [int(token) for token in ids[0, -count:]]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 8.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 4, "length_penalty": -2.0},
        {"do_sample": True, "temperature": 9.0},
        {"suppress_tokens": list(range(9, 300))},
        {"return_dict_in_generate": True},
    ],
)
def test_settings_of_a_model_change_nothing(model: Any, settings: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    inputs = prompt(tokenizer)
    own = model.generation_config
    tokens = by_hand(model, inputs, 6)
    try:
        model.generation_config = type(own)(**{**own.to_dict(), **settings})
        given = model.generation_config
        written = write_answers(model, tokenizer, inputs, new_tokens=6)
        assert model.generation_config is given
    finally:
        model.generation_config = own
    assert written == [(tokenizer.decode(tokens, skip_special_tokens=True), False)]


def test_the_tokenizers_end_ends_an_answer(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings may name another end, or none: chat models that were put together have the base model's."""
    tokenizer = tiny_tokenizer()
    inputs = prompt(tokenizer)
    third = by_hand(model, inputs, 3)[2]
    monkeypatch.setattr(model.generation_config, "eos_token_id", CHAT_END)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    written = write_answers(model, tokenizer, inputs, new_tokens=6)
    assert [each.text for each in written] == [tokenizer.decode(by_hand(model, inputs, 2))]  # the end is no text


@pytest.mark.parametrize("special", [True, False])
def test_marks_of_thoughts_are_kept_and_a_prompt_may_open_one(model: Any, special: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(mark, special=special) for mark in ("<think>", "</think>")], special_tokens=special
    )
    asked = tokenizer("What is it?<think>\n")["input_ids"]
    inputs = {"input_ids": torch.tensor([asked])}
    said = tokenizer("a coat?</think>a bag</s><pad>", add_special_tokens=False)["input_ids"]
    model = SimpleNamespace(
        generation_config=model.generation_config,
        parameters=lambda: iter(()),
        modules=lambda: iter(()),
        generate=lambda **_: torch.tensor([asked + said]),
    )
    (written,) = write_answers(model, tokenizer, inputs, new_tokens=6)
    assert written == ("a coat?</think>a bag", True)
    assert written.parts() == ("a coat?", "a bag", False)
    assert Written("a coat? And", opened=True).parts() == ("a coat? And", "", True)
