"""Adversarial self-attention: what is hidden, what is learnt, and who makes it large or small."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blocks.edits import AdversarialAttention
from blocks.edits.weights.adversarial import divergence
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.answer_losses import answers
from tests.tiny_batches import batch_of, padded_left
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_methods import stirred


def lesson(method: AdversarialAttention, model: Any, batch: Any) -> Tensor:
    """What is learnt of a batch."""
    with Recipe([method]).on(model, learns=True):
        found = method.lesson(lambda: answers(model, batch["inputs"], batch["labels"]))
    assert found is not None
    return found


def by_hand(method: AdversarialAttention, model: Any, batch: Any, layer: int) -> tuple[Tensor, Tensor]:
    """Logits with a mask that was made by hand, and the share of keys that stay."""
    states: list[Tensor] = []
    module = model.model.language_model.layers[layer]
    kept = module.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model(**batch["inputs"])
    kept.remove()
    normed = states[0] / states[0].pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
    held: Any = method.held[str(layer)]
    said = torch.einsum("bqc,bkc->bqk", held["query"](normed), held["key"](normed)) / 32**0.5
    length = said.shape[1]
    present = batch["inputs"]["attention_mask"].bool()
    allowed = torch.ones(length, length).tril().bool() & present[:, None]
    mask = torch.where((said >= 0) & allowed, 0.0, -1e4)
    mask = torch.where(allowed, mask, torch.finfo(torch.float32).min)[:, None]
    changed = module.register_forward_pre_hook(
        lambda _, args, given: (args, {**given, "attention_mask": mask}), with_kwargs=True
    )
    _, logits, _ = answers(model, batch["inputs"], batch["labels"])
    changed.remove()
    return logits, (said >= 0)[allowed].float().mean()


def test_keys_below_zero_are_hidden_in_the_passes_of_its_own() -> None:
    model, layer = tiny_lvlm("llava"), 2
    batch = padded_left(batch_of("llava", model))
    method = AdversarialAttention(tau=0.7, layers=[layer])
    stirred(method)
    with torch.no_grad():
        found = lesson(method, model, batch)
        _, plain, _ = answers(model, batch["inputs"], batch["labels"])
        changed, share = by_hand(method, model, batch, layer)
    assert 0.2 < float(share) < 0.8 and not torch.allclose(plain, changed, atol=1e-2)
    first, second = plain.softmax(-1), changed.softmax(-1)
    both = (first * (first / second).log()).sum(-1) + (second * (second / first).log()).sum(-1)
    torch.testing.assert_close(divergence(plain, changed), both.mean() / 2)
    torch.testing.assert_close(found, both.mean() / 2 + 0.49 * share, atol=1e-4, rtol=1e-3)


def test_it_begins_by_hiding_nothing_and_works_in_its_own_passes_alone() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    method = AdversarialAttention(tau=0.5)
    with torch.no_grad():
        torch.testing.assert_close(lesson(method, model, batch), torch.tensor(0.25), atol=1e-5, rtol=1e-4)
        stirred(other := AdversarialAttention())
        _, plain, _ = answers(model, batch["inputs"], batch["labels"])
        for learns in (True, False):
            with Recipe([other]).on(model, learns=learns):
                _, same, _ = answers(model, batch["inputs"], batch["labels"])
            torch.testing.assert_close(same, plain, atol=2e-5, rtol=1e-4)


def test_the_adversary_climbs_where_the_model_descends() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    method = AdversarialAttention(tau=2.0, layers=[1, 4])
    stirred(method, 0.1)
    before = lesson(method, model, batch)
    before.backward()
    assert any(
        float(p.grad.abs().max()) > 0 for p in model.model.language_model.layers[3].parameters() if p.grad is not None
    )
    said = [float(p.grad.norm()) for p in method.held.parameters() if p.grad is not None]
    assert len(said) == 8 and all(value > 0 for value in said[::2])
    with torch.no_grad():
        for parameter in method.held.parameters():
            parameter -= 0.5 * parameter.grad  # an optimiser's step down
        after = lesson(method, model, batch)
    assert float(after) > float(before)  # what stays grows, by which tau counts most


@pytest.mark.parametrize("options", [{"tau": -1.0}, {"layers": []}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tau is from 0"):
        AdversarialAttention(**options)
