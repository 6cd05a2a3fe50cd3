"""Artefacts of calibration: what they find, against slow searches, and models that they are refused on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks.edits import InactiveHeads
from blocks.tokens import FitPrune, GammaMoD
from sparsight.lvlm.methods.calibration.ranks import LowRankLayers
from sparsight.lvlm.methods.calibration.searches import FitPruneShares, InactiveHeadVotes
from sparsight.lvlm.methods.conformance import check_methods, left_padded
from sparsight.lvlm.methods.recipe import Recipe
from tests.tiny_methods import tried
from tests.tiny_tokens import IMAGE


def maps(model: Any, sample: dict[str, Any]) -> list[torch.Tensor]:
    """Attention (h, T, T) of every layer."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return [part[0] for part in eager(**sample, output_attentions=True).attentions]


def test_layers_lose_what_question_and_images_leave_alone() -> None:
    model, samples = tried("llava")
    calibrator = FitPruneShares(0.7)
    found = calibrator.artefact(model, [left_padded(samples)])
    values, alpha = found["values"], found["values"]["alpha"]
    total = [0] * 6
    for sample in samples:
        ids = sample["input_ids"][0].tolist()
        images = [n for n, each in enumerate(ids) if each == IMAGE]
        question, left = range(images[-1] + 1, len(ids)), set(images)
        for layer, weights in enumerate(maps(model, sample)):
            most = weights.amax(0)
            leaving = set(left)
            for rows in (question, images):
                given = {n: sum(float(most[row, n]) for row in rows) for n in left}
                order, mass, few = sorted(left, key=lambda n: given[n]), 0.0, set()
                for n in order:
                    mass += given[n]
                    if mass > alpha * sum(given.values()):
                        break
                    few.add(n)
                leaving &= few
            total[layer] += len(leaving)
            left -= leaving
    assert values["drop"] == [(count // 2) / 16 for count in total] and sum(values["drop"]) > 0.1
    assert calibrator.cost(calibrator.counts(alpha)) <= 0.7 * calibrator.cost([0] * 6)
    check_methods(lambda: [FitPrune(found)], model, samples, trains=False)


def test_heads_are_inactive_where_few_samples_look_at_images(tmp_path: Path) -> None:
    model, samples = tried("llava")
    file = tmp_path / "heads.json"
    found = InactiveHeadVotes(threshold=1.0, votes=0.5).write(model, [left_padded(samples)], file)
    wanted: dict[str, list[int]] = {}
    for layer in range(2, 6):
        active = [0] * 4
        for sample in samples:
            visual = sample["input_ids"][0] == IMAGE
            weights = maps(model, sample)[layer]
            for head in range(4):
                seen = float(weights[head][:, visual].sum() / weights[head][:, ~visual].sum())
                active[head] += seen > 1.0
        wanted |= {str(layer): [h for h in range(4) if active[h] <= 1]} if min(active) <= 1 else {}
    assert found["values"]["heads"] == wanted and json.loads(file.read_text()) == found
    check_methods(lambda: [InactiveHeads(artefact=str(file))], model, samples, trains=False)


@pytest.mark.parametrize(
    ("name", "value"), [("shape", [6, 4, 64]), ("resolution", 336), ("revision", "0" * 40), ("template", "0" * 64)]
)
def test_an_artefact_of_another_model_is_refused(name: str, value: Any) -> None:
    model, _ = tried("llava")
    content = {"kind": "FitPruneShares", "made_with": {name: value}, "values": {"drop": [0, 0.5]}}
    recipe = Recipe([FitPrune(content)])
    model.config._commit_hash = "1" * 40
    try:
        with pytest.raises(ValueError, match=rf"FitPrune: the artefact was made with {name} .*calibrate it anew"):
            recipe.check(model, template="{{ messages }}")
    finally:
        model.config._commit_hash = None
    assert recipe.is_calibrated


def test_prompts_without_images_are_nothing_to_calibrate_by() -> None:
    model, _ = tried("llava")
    text = {"input_ids": torch.tensor([[1, 40, 41]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    for calibrator in (FitPruneShares(), InactiveHeadVotes()):
        with pytest.raises(ValueError, match="saw no images"):
            calibrator.artefact(model, [text])
        with pytest.raises(ValueError, match="saw no prompts"):
            calibrator.artefact(model, [])


def test_layers_of_low_rank_are_found(tmp_path: Path) -> None:
    model, samples = tried("llava")
    found = LowRankLayers(0.34).artefact(model, [left_padded(samples)])
    ranks = [0.0] * 6
    for sample in samples:
        for layer, weights in enumerate(maps(model, sample)):
            own = weights * (1 - torch.eye(weights.shape[-1]))
            ranks[layer] += float(torch.linalg.matrix_rank(own).float().mean()) / 2
    assert [found["values"]["ranks"][str(layer)] for layer in range(6)] == pytest.approx(ranks, abs=0.3)
    inner = sorted(range(1, 5), key=lambda layer: (found["values"]["ranks"][str(layer)], layer))
    assert found["values"]["layers"] == sorted(inner[:2])
    method = GammaMoD(artefact=found)
    assert [layer for layer in range(6) if method.at(layer, 6)] == found["values"]["layers"]
