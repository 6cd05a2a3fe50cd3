"""What policies keep by attention maps, against their equations, written out slowly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks.tokens import Attending, Feather, FitPrune, Sight, SparseVLM
from blocks.tokens.attending import unturned
from blocks.tokens.policies.feather import without_positions
from blocks.tokens.policies.sparse_vlm import raters
from tests.tiny_maps import attending, token_map

TEXT = "ps" + "i" * 9 + "qqqa"
TOKENS = token_map(TEXT, columns=3)
IMAGES = list(range(2, 11))
WORDS = [11, 12, 13]


def sight(layer: int, seed: int = 0) -> Sight:
    torch.manual_seed(seed)
    told = attending(TOKENS, heads=3, seed=seed)
    entering = torch.randn(1, len(TEXT), 6)
    return Sight(layer, 12, TOKENS, torch.randn(1, len(TEXT), 6), told, entering, torch.tensor([12]))


def kept(keep: torch.Tensor) -> set[int]:
    return {n for n in IMAGES if bool(keep[0, n])}


def best(scores: dict[int, float], count: int) -> set[int]:
    return set(sorted(scores, key=lambda n: -scores[n])[:count])


def turned(part: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary position encoding in halves."""
    cos, sin = angles.cos(), angles.sin()
    one, other = part.chunk(2, -1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def test_feather_looks_without_positions_and_keeps_a_grid_once() -> None:
    plain = attending(TOKENS, heads=3, seed=2)
    angles = torch.outer(torch.arange(len(TEXT)).float(), torch.tensor([0.7, 0.3]))
    tables = tuple(torch.cat([part, part], -1)[None] for part in (angles.cos(), angles.sin()))
    moved = plain._replace(query=turned(plain.query, angles), key=turned(plain.key, angles), tables=tables)
    torch.testing.assert_close(unturned(moved.query, tables), plain.query)  # type: ignore[arg-type]
    weights = plain.logits()[0, :, 13, IMAGES].softmax(-1).mean(0).tolist()  # 13 is the last of the prompt
    scores = dict(zip(IMAGES, weights, strict=True))
    found = without_positions(moved)[0]
    assert [float(found[n]) for n in IMAGES] == pytest.approx(weights, abs=1e-6)
    method = Feather([3, 6], [0.4, 0.2], stride=2)
    grid = {IMAGES[n] for n in (0, 2, 6, 8)}  # rows and columns 0 and 2 of 3 x 3
    first = method.decide(sight(3)._replace(before=moved)).keep
    assert kept(first) == best(scores, 3) | grid
    assert kept(method.decide(sight(6)._replace(before=moved)).keep) == best(scores, 1)
    assert [layer for layer in range(32) if Feather().at(layer, 32)] == [8, 16]
    with pytest.raises(ValueError, match="cannot be taken back"):
        without_positions(plain)


def fitted(drop: list[float], **made_with: Any) -> dict[str, Any]:
    return {"kind": "FitPruneShares", "made_with": made_with, "values": {"drop": drop}}


def test_fit_prune_drops_the_least_attended_by_question_and_images(tmp_path: Path) -> None:
    seen = sight(3)
    assert isinstance(seen.before, Attending)
    most = seen.before.weights()[0].amax(0)
    scores = {n: sum(float(most[q, n]) for q in WORDS) / 3 * sum(float(most[v, n]) for v in IMAGES) / 9 for n in IMAGES}
    content = fitted([0, 0, 0.25, 0.5])  # of the 12 that entered the decoder, 9 are left
    assert kept(FitPrune(content).decide(seen).keep) == best(scores, 6)
    assert kept(FitPrune(content).decide(seen._replace(layer=4)).keep) == best(scores, 3)
    file = tmp_path / "shares.json"
    file.write_text(json.dumps(content))
    method = FitPrune(str(file))
    assert [layer for layer in range(6) if method.at(layer, 6)] == [3, 4]
    assert method.record()["options"]["artefact"] == content
    for wrong, told in (
        (str(tmp_path / "none.json"), "no JSON file that can be read"),
        ({**content, "kind": "Other"}, "comes from Other, expected one of FitPruneShares"),
        ({"kind": "FitPruneShares"}, "holds no kind, made_with and values"),
        (fitted([1.5]), "drop holds shares"),
    ):
        with pytest.raises(ValueError, match=told):
            FitPrune(wrong)  # type: ignore[arg-type]


def test_raters_are_words_that_are_like_the_image_above_the_mean() -> None:
    entering = sight(3, seed=4).entering[0]
    rating = dict.fromkeys(WORDS, 0.0)
    for v in IMAGES:
        likeness = {t: math.exp(float(entering[v] @ entering[t])) for t in WORDS}
        for t in WORDS:
            rating[t] += likeness[t] / sum(likeness.values()) / len(IMAGES)
    mean = sum(rating.values()) / len(rating)
    chosen = [t for t in WORDS if rating[t] > mean]
    assert 0 < len(chosen) < 3 and raters(entering[None], TOKENS)[0].nonzero()[:, 0].tolist() == chosen
    seen = sight(3, seed=4)
    assert seen.before is not None
    weights = seen.before.weights()[0].mean(0)
    scores = {n: sum(float(weights[t, n]) for t in chosen) for n in IMAGES}
    decision = SparseVLM([3, 6], [0.4, 0.2]).decide(seen)
    assert kept(decision.keep) == best(scores, 4) and decision.mix is None  # 0.4 of 12
    merging = SparseVLM([3, 6], [0.4, 0.2], recycle=0.8).decide(seen)
    left = [n for n in sorted(IMAGES, key=lambda n: -scores[n])][4:8]  # 0.8 of 5 that leave
    assert merging.mix is not None
    (centre,) = kept(merging.keep) - best(scores, 4)
    row = merging.mix[0, centre]
    assert centre in left and sorted(row.nonzero()[:, 0].tolist()) == sorted(left)
    assert row[left].tolist() == pytest.approx([0.25] * 4)
    others = [n for n in range(len(TEXT)) if n != centre]
    assert torch.equal(merging.mix[0, others], torch.eye(len(TEXT))[others])
