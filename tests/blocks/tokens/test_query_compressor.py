"""SliME's compressors against attention written out, and that gate and router see noise of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from blocks.tokens import Crop, QueryCompressor, Shape
from blocks.tokens.reducers.query_compressor import code_of, spread
from tests.tiny_methods import stirred

SHAPE = Shape(depth=2, channels=8, heads=2, key_heads=1, head_channels=4, inner=8)


def crop(number: int = 1, rows: int = 4, columns: int = 6) -> Crop:
    torch.manual_seed(0)
    row, column = (part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    features = torch.randn(rows * columns, 8)
    return Crop(features, None, None, 0, row=row + 3, column=column + 5, text=torch.randn(3, 8), number=number)


def fitted(**options: Any) -> QueryCompressor:
    method = QueryCompressor(**options)
    stirred(method).fit(SHAPE)  # type: ignore[attr-defined]
    return method


def slow(module: Any, given: Crop, place: int) -> torch.Tensor:
    """What the query of one place gathers."""
    code = module.place(code_of(given))
    x = [F.layer_norm(v, [8], module.norm.weight, module.norm.bias) for v in given.features]
    out = []
    for head in range(2):
        own = slice(4 * head, 4 * head + 4)
        keys = torch.stack([(module.key(v) + code[n])[own] for n, v in enumerate(x)])
        weights = torch.stack([code[place][own] @ key / math.sqrt(4) for key in keys]).softmax(0)
        out.append(sum(w * module.value(v)[own] for w, v in zip(weights, x, strict=True)))
    return module.out(torch.cat(out))  # type: ignore[arg-type]


def test_local_crops_become_what_queries_gather_of_them() -> None:
    given, method = crop(), fitted(side=2, mass=0.6)
    places = spread(given, 2).tolist()
    assert places == [1 * 6 + 1, 1 * 6 + 4, 3 * 6 + 1, 3 * 6 + 4]
    made = torch.stack([slow(method.held.local, given, place) for place in places])
    likeness = [sum(float(torch.cosine_similarity(v, t, dim=0)) for t in given.text) for v in made]  # type: ignore[union-attr]
    shares = torch.tensor(likeness).softmax(0).tolist()
    kept, mass = [], 0.0
    for n in sorted(range(4), key=lambda n: -shares[n]):
        if mass < 0.6:
            kept.append(n)
        mass += shares[n]
    (found,) = method.reduce_sample([given])
    assert found.keep.tolist() == [places[n] for n in sorted(kept)] and len(kept) < 4
    assert found.features is not None and found.weights is not None
    torch.testing.assert_close(found.features, made[sorted(kept)])
    torch.testing.assert_close(found.weights.sum(1), torch.ones(len(kept)))


def test_whole_images_are_mixtures_of_both_experts() -> None:
    given, method = crop(number=0), fitted()
    (found,) = method.reduce_sample([given])
    held = method.held
    share = held.gate(given.features.mean(0)).softmax(0)
    assert found.keep.tolist() == list(range(24)) and found.features is not None
    for n in (0, 7, 23):
        wanted = share[0] * given.features[n] + share[1] * slow(held.whole, given, n)
        torch.testing.assert_close(found.features[n], wanted)
    found.features.sum().backward()
    assert held.gate.weight.grad.abs().max() > 0 and held.whole.place.weight.grad.abs().max() > 0
    assert held.gate_noise.weight.grad is None and held.local.place.weight.grad is None


def test_noise_of_the_gate_has_weights_of_its_own() -> None:
    given, method = crop(number=0)._replace(learns=True), fitted()
    (found,) = method.reduce_sample([given])
    assert found.features is not None
    found.features.sum().backward()
    assert method.held.gate_noise.weight.grad.abs().max() > 0
    (other,) = method.reduce_sample([given])
    assert other.features is not None and not torch.allclose(found.features, other.features)


def test_grids_fit_into_small_crops_and_options_are_checked() -> None:
    assert spread(crop(rows=2, columns=3), 12).tolist() == list(range(6))
    for options, told in (({"side": 0}, "side is from 1"), ({"temperature": 0.0}, "temperature above 0")):
        with pytest.raises(ValueError, match=told):
            QueryCompressor(**options)  # type: ignore[arg-type]
