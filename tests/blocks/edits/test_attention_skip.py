"""Layers without attention: the adapter against its equations, the layer against its modules, and the search."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blocks.edits import AttentionSkip
from blocks.tokens import FastV, Shape
from sparsight.lvlm.methods.calibration.skips import AttentionSearch
from sparsight.lvlm.methods.conformance import check_methods
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.answer_losses import answer_losses
from tests.tiny_batches import batch_of
from tests.tiny_maps import token_map
from tests.tiny_methods import stirred, tried

SHAPE = Shape(depth=6, channels=8, heads=2, key_heads=1, head_channels=4, inner=16)
TEXT = ("psiiqqaa", "siiiqqqa")


def grouped(up: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """A convolution of two groups: each half of the inside makes a half of the channels."""
    return torch.cat([up[0] @ inner[:2], up[1] @ inner[2:]])


def test_an_adapter_is_that_of_its_equations() -> None:
    method, tokens = AttentionSkip([2], width=4, temperature=2.0), token_map(*TEXT)
    stirred(method).fit(SHAPE)  # type: ignore[attr-defined]
    torch.manual_seed(0)
    x = torch.randn(2, 8, 8)
    held = method.held["2"]
    found, state = method.adapted(x, tokens, 2, None)
    for sample, text in enumerate(TEXT):
        places = [n for n, letter in enumerate(text) if letter != "p"]
        asked = [n for n in places if text[n] != "a"]
        shares = (held.shares.weight @ x[sample, asked].mean(0) / 2.0).softmax(0)
        for n in places:
            seen = [held.mean.weight @ x[sample, k] for k in places if k <= n]
            inner = 0.5 * (held.own.weight @ x[sample, n] + torch.stack(seen).mean(0))
            wanted = x[sample, n] + sum(share * grouped(up, inner) for share, up in zip(shares, held.up, strict=True))
            torch.testing.assert_close(found[sample, n], wanted)
    first, kept = method.adapted(x[:, :6], token_map(*(text[:6] for text in TEXT)), 2, None)
    rest, last = method.adapted(x[:, 6:], token_map(*(text[6:] for text in TEXT)), 2, kept)
    torch.testing.assert_close(torch.cat([first, rest], 1)[0], found[0])  # the first sample's answer has both words
    torch.testing.assert_close(last[0], state[0])


def test_a_layer_is_its_feed_forward_part_alone() -> None:
    model, (sample, _) = tried("llava")
    layers: Any = model.model.language_model.layers
    seen: dict[int, Any] = {}
    hooks = [
        layers[n].mlp.register_forward_hook(lambda _m, args, out, n=n: seen.__setitem__(n, (args[0], out)))
        for n in (3, 4)
    ]
    hooks.append(layers[4].register_forward_pre_hook(lambda _m, args: seen.__setitem__("in", args[0])))
    hooks.append(layers[2].register_forward_hook(lambda _m, _a, out: seen.__setitem__("before", out)))
    try:
        with torch.no_grad(), Recipe([AttentionSkip([3], width=4)]).on(model):
            model(**sample)
    finally:
        for hook in hooks:
            hook.remove()
    before = seen["before"]  # type: ignore[index]
    layer = layers[3]
    with torch.no_grad():  # a fresh adapter passes on what it is given
        wanted = before + layer.mlp(layer.post_attention_layernorm(layer.input_layernorm(before)))
    torch.testing.assert_close(seen["in"], wanted)  # type: ignore[index]


def test_the_search_takes_layers_whose_attention_costs_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards are those of the losses; where some layers are worth more than others, the others are found."""
    model, _ = tried("llava")
    batch = batch_of("llava", model)
    given = [{**batch["inputs"], "labels": batch["labels"]}]
    search = AttentionSearch(2, steps=1)
    with torch.no_grad(), Recipe([AttentionSkip([2, 4], width=8)]).on(model):
        loss = answer_losses(model, batch["inputs"], batch["labels"])[0].mean()
    assert search.reward(model, given, [2, 4]) == pytest.approx(float((-loss).exp()), rel=1e-4)
    found = search.artefact(model, given)
    assert len(found["values"]["layers"]) == 2 and set(found["values"]["scores"]) == {"1", "2", "3", "4", "5"}
    check_methods(lambda: [AttentionSkip(artefact=found, width=4)], model, tried("llava")[1], trains=False)
    cost = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.2}
    monkeypatch.setattr(AttentionSearch, "reward", lambda _s, _m, _b, layers: 1.0 - sum(cost[n] for n in layers) / 2)
    assert AttentionSearch(2, steps=60).artefact(model, given)["values"]["layers"] == [2, 5]


@pytest.mark.parametrize(
    ("family", "methods", "told"),
    [
        ("llava", [AttentionSkip([0])], "cannot replace layer 0, by whose attention caches count tokens"),
        ("llava", [AttentionSkip([9])], r"AttentionSkip names layers \[9\]"),
        ("llava", [AttentionSkip([2]), FastV(3)], "FastV asks for layer 2, in whose place AttentionSkip works"),
        ("qwen3_5", [AttentionSkip([1])], "AttentionSkip needs attention in layer 1, which is of kind"),
    ],
)
def test_layers_that_cannot_be_replaced_are_named(family: str, methods: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Recipe(methods).check(tried(family)[0])


def test_options_are_checked() -> None:
    for options, told in (({}, "layers or an artefact"), ({"layers": [2], "width": 3}, "width is even")):
        with pytest.raises(ValueError, match=told):
            AttentionSkip(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give it batches with labels"):
        AttentionSearch(1).artefact(tried("llava")[0], [])
