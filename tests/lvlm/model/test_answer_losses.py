"""Losses at answer positions, against transformers' own logits and losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM

from sparsight.lvlm.model.answer_losses import answer_logits, answer_losses
from tests.tiny_batches import labels_of
from tests.tiny_families import FAMILIES
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_all_logits(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    labels = labels_of(inputs)
    losses, samples = answer_losses(model, inputs, labels)
    logits = model(**inputs).logits[:, :-1].float()
    wanted = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(2, -1)
    for sample in range(2):
        torch.testing.assert_close(losses[samples == sample], wanted[sample][labels[sample, 1:] != -100])
    torch.testing.assert_close(losses.mean(), model(**inputs, labels=labels).loss)


def test_gradients_are_those_of_all_logits() -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    labels = labels_of(inputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(answer_losses(model, inputs, labels)[0].mean(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(model(**inputs, labels=labels).loss, parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_a_model_does_with_its_logits_is_done() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 40}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.5)
    model = Gemma2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    inputs = {"input_ids": torch.randint(40, (2, 6))}
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted[0, 3] = wanted[1, 2] = True
    logits = answer_logits(model, inputs, wanted)
    torch.testing.assert_close(logits, model(**inputs).logits[wanted])
    assert 0.4 < logits.abs().max() <= 0.5


def test_the_head_sees_answers_alone_and_is_left_as_it_was() -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: rows.append(args[0].shape[1]))
    losses, _ = answer_losses(model, inputs, labels_of(inputs))
    assert rows == [len(losses)] == [6]
    hook.remove()
    assert not model.lm_head._forward_pre_hooks


def test_a_head_that_is_not_called_is_an_error() -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    model.get_output_embeddings = lambda: torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="head"):
        answer_losses(model, inputs, labels_of(inputs))
