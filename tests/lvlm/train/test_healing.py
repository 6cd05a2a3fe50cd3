"""What a model that lost layers is drawn to, compared with a slow form of the same mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.lvlm.model.answer_losses import IGNORED, answers
from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.load import ModelLoading
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.train.healing import Healer, Healing
from sparsight.lvlm.train.unpruned import UnprunedModel, unpruned_copy
from tests.tiny_lvlm import tiny_lvlm

WEIGHTS = Healing(hidden=0.5, logits=2.0, layers=0.25)
GONE = [2]


def batch() -> tuple[dict[str, Tensor], Tensor]:
    """Two texts, the second with padding in front, and answers of other lengths."""
    tokens_BT = torch.arange(20, 34).reshape(2, 7)
    mask_BT = torch.ones(2, 7, dtype=torch.long)
    mask_BT[1, :2] = 0
    labels_BT = tokens_BT.clone()
    labels_BT[0, :4] = IGNORED
    labels_BT[1, :6] = IGNORED
    return {"input_ids": tokens_BT, "attention_mask": mask_BT}, labels_BT


def states(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Hidden states that each layer returns, by transformers' own means (the last one is before the norm)."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: found.append(call[2] if isinstance(call[2], Tensor) else call[2][0]))
        for layer in find_parts(model).layers
    ]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def healed(weights: Healing) -> tuple[dict[str, tuple[float, Tensor]], Any, Any]:
    """Terms of a model without a layer, that model and what it was."""
    torch.manual_seed(0)
    student = tiny_lvlm("llava").eval()
    healer = Healer(weights, ModelLoading())
    healer.begin(student, base="base", dtype=torch.float32, loses_layers=True, depth=len(find_parts(student).layers))
    inputs, labels_BT = batch()
    parts = find_parts(student)
    with bypassed(parts.layers, GONE), healer.watching(parts, GONE) as watched:
        _, logits, _ = answers(student, inputs, labels_BT)
    terms = healer.terms(inputs, labels_BT, watched=watched, logits_NV=logits)
    assert healer.unpruned is not None
    return terms, student, healer.unpruned.model


def test_terms_are_those_of_a_slow_form() -> None:
    terms, student, teacher = healed(WEIGHTS)
    inputs, labels_BT = batch()
    with torch.no_grad():
        wanted = states(teacher, inputs)
        with bypassed(find_parts(student).layers, GONE):
            got = states(student, inputs)
            logits_BTV = student(**inputs, use_cache=False).logits
        wanted_BTV = teacher(**inputs, use_cache=False).logits
    mask_BT = inputs["attention_mask"].bool()
    shares = [
        (got[layer][mask_BT] - wanted[layer][mask_BT]).square().sum() / wanted[layer][mask_BT].square().sum()
        for layer in range(len(wanted))
    ]
    kept = [layer for layer in range(len(wanted)) if layer not in GONE]
    assert shares[0] == shares[1] == 0 < shares[3], "what comes before the gap is as it was"
    torch.testing.assert_close(terms["hidden_difference"], (0.5, shares[-1]))
    torch.testing.assert_close(
        terms["layers_difference"], (0.25, torch.stack([shares[layer] for layer in kept]).mean())
    )
    divergences = []
    for row, place in (labels_BT[:, 1:] != IGNORED).nonzero().tolist():
        ours, theirs = (logits[row, place].log_softmax(-1) for logits in (logits_BTV, wanted_BTV))
        divergences.append((theirs.exp() * (theirs - ours)).sum())
    assert len(divergences) == 4
    torch.testing.assert_close(terms["answers_divergence"], (2.0, torch.stack(divergences).mean()))


@pytest.mark.parametrize("name", ["hidden", "logits", "layers"])
def test_a_term_of_weight_0_is_not_there_and_each_reaches_what_learns(name: str) -> None:
    terms, student, _ = healed(Healing(**{name: 1.0}))
    assert len(terms) == 1
    ((_, term),) = terms.values()
    term.backward()
    first, last = find_parts(student).layers[0], find_parts(student).layers[-1]
    for layer in (first, last):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_layers_of_a_shorter_model_are_compared_with_what_they_were() -> None:
    student, teacher = tiny_lvlm("llava").eval(), tiny_lvlm("llava", num_hidden_layers=4).eval()
    inputs, labels_BT = batch()
    hidden = dict(enumerate(states(teacher, inputs)))
    twice = UnprunedModel(unpruned_copy(teacher, torch.float32), student, [0, 2, 3])
    found = twice.compared(
        inputs, labels_BT, hidden={0: hidden[0], 1: hidden[2], 2: hidden[3]}, last=False, logits_NV=None
    )
    assert [float(each.detach()) for each in found.differences.values()] == [0, 0, 0] and found.divergence is None
    other = twice.compared(inputs, labels_BT, hidden={1: hidden[1]}, last=True, logits_NV=None)
    assert float(other.differences[1].detach()) > 0


def test_a_teacher_without_a_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the weights, are 0: set one of them, e\.g\. hidden to 1\.0"):
        Healing(teacher=str(tmp_path))
