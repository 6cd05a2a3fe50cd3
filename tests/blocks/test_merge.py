"""Mixers made of mixers: what they compute, how they are told as plain data, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blocks import (
    AttentionWeights,
    CoreMixer,
    Grid,
    HeadSplit,
    LinearAttention,
    Merge,
    NeighborhoodAttention,
    PooledAttention,
    Site,
    SiteSamples,
    SoftmaxAttention,
    TileAttention,
)
from sparsight.testing import SITE, attend, random_inputs, random_teacher, relative_l2

NEAR = partial(TileAttention, tile=2)
FAR = partial(PooledAttention, tile=2, without_own=True)
GRIDS = [Grid(7), Grid(4, 6), Grid(5, 3), Grid(3, 5, 2), Grid(1, 1)]


def joint_softmax(q: Tensor, k: Tensor, v: Tensor, grid: Grid, tile: int, scale: float) -> Tensor:
    """Own tile exactly and each other tile by its mean with the log of its count, query by query in one softmax."""
    places = torch.cartesian_prod(*(torch.arange(size) // tile for size in grid.sizes)).view(grid.tokens, -1)
    outputs = []
    for query, place in enumerate(places):
        own = (places == place).all(1)
        keys, values, bias = [k[:, :, own]], [v[:, :, own]], [torch.zeros(int(own.sum()))]
        for other in places.unique(dim=0):
            inside = (places == other).all(1)
            if not torch.equal(other, place):
                keys.append(k[:, :, inside].mean(2, keepdim=True))
                values.append(v[:, :, inside].mean(2, keepdim=True))
                bias.append(inside.sum().log()[None])
        logits = q[:, :, query : query + 1] @ torch.cat(keys, 2).mT * scale + torch.cat(bias)
        outputs.append(logits.softmax(-1) @ torch.cat(values, 2))
    return torch.cat(outputs, 2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_and_pooled_others_are_one_softmax(grid: Grid) -> None:
    torch.manual_seed(0)
    merged = Merge(SITE, parts=[NEAR, FAR])
    q, k, v = random_inputs(merged, grid)
    assert relative_l2(merged.mix(q, k, v, grid, 0.4), joint_softmax(q, k, v, grid, 2, 0.4)) < 1e-5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_parts_over_all_keys_of_one_token_are_attention(grid: Grid) -> None:
    merged = Merge(SITE, parts=[partial(TileAttention, tile=1), partial(PooledAttention, tile=1, without_own=True)])
    q, k, v = random_inputs(merged, grid)
    assert relative_l2(merged.mix(q, k, v, grid, 0.4), F.scaled_dot_product_attention(q, k, v, scale=0.4)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near_the_full_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    split = HeadSplit(SITE, parts=[partial(Merge, parts=[NEAR, FAR], learned_balance=True), SoftmaxAttention])
    low = copy.deepcopy(split).to(dtype)
    for grid in GRIDS:
        inputs = random_inputs(split, grid)
        output = low.mix(*(part.to(dtype) for part in inputs), grid, 0.4)
        assert output.dtype == dtype and relative_l2(output, split.mix(*inputs, grid, 0.4)) < 0.02


def test_balance_shifts_the_mass_of_a_part_and_learns() -> None:
    torch.manual_seed(0)
    plain, merged = Merge(SITE, parts=[NEAR, FAR], learned_balance=False), Merge(SITE, parts=[NEAR, FAR])
    grid = Grid(4, 6)
    q, k, v = random_inputs(merged, grid)
    torch.testing.assert_close(merged.partial(q, k, v, grid, 0.4), plain.partial(q, k, v, grid, 0.4))
    assert merged.balance is not None and merged.balance.shape == (1, SITE.heads)
    assert plain.balance is None
    merged.mix(q, k, v, grid, 0.4).square().sum().backward()
    assert merged.balance.grad is not None and bool(merged.balance.grad.all())
    with torch.no_grad():
        merged.balance[0, 0], merged.balance[0, 1] = 50.0, -50.0
        mixed = merged.mix(q, k, v, grid, 0.4)
    far, near = (make(SITE).mix(q, k, v, grid, 0.4) for make in (FAR, NEAR))
    assert relative_l2(mixed[:, 0], far[:, 0]) < 1e-5 and relative_l2(mixed[:, 1], near[:, 1]) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_are_those_of_the_joint_softmax(batch: int) -> None:
    torch.manual_seed(0)
    merged, grid = Merge(SITE, parts=[NEAR, FAR]), Grid(5, 3)
    inputs = [part.requires_grad_() for part in random_inputs(merged, grid, batch=batch)]
    weight = torch.randn_like(inputs[0])
    found = torch.autograd.grad((merged.mix(*inputs, grid, 0.4) * weight).sum(), inputs)
    wanted = torch.autograd.grad((joint_softmax(*inputs, grid, 2, 0.4) * weight).sum(), inputs)
    assert all(relative_l2(one, other) < 1e-5 for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("part", [Merge, HeadSplit])
@pytest.mark.parametrize("mass", [False, True])
def test_hooks_on_parts_see_every_pass(part: Any, mass: bool) -> None:
    mixer = part(SITE, parts=[partial(Merge, parts=[NEAR]), FAR])
    seen: list[str] = []
    for name, inner in mixer.named_modules():
        if isinstance(inner, CoreMixer):
            inner.register_forward_hook(lambda *_, name=name: seen.append(name))
    # torch 2.11 does not count the kernel that is taken where nothing is to be differentiated
    inputs = [each.requires_grad_() for each in random_inputs(mixer, Grid(4, 6))]
    counter = FlopCounterMode(display=False)
    with counter:
        mixer(*inputs, Grid(4, 6), 0.4, **({"mass": True} if mass else {}))
    assert sorted(seen) == ["", "mixers.0", "mixers.0.mixers.0", "mixers.1"]
    counted = {name.removeprefix(part.__name__): sum(n.values()) for name, n in counter.get_flop_counts().items()}
    assert all(counted[f".{name}"] > 0 for name in seen if name)


def test_heads_are_mixed_by_the_part_of_their_range() -> None:
    site = dataclasses.replace(SITE, heads=5, head_dim=4, channels=20)
    parts = [NEAR, SoftmaxAttention, partial(PooledAttention, tile=3)]
    split = HeadSplit(site, parts=parts, heads=[[3, 5], [0, 2], [2, 3]])
    assert [mixer.site.heads for mixer in split.mixers] == [2, 2, 1]
    grid = Grid(4, 6)
    q, k, v = random_inputs(split, grid)
    mixed = split.mix(q, k, v, grid, 0.4)
    for make, (start, stop) in zip(parts, split.heads, strict=True):
        whole = make(site).mix(q, k, v, grid, 0.4)
        torch.testing.assert_close(mixed[:, start:stop], whole[:, start:stop])
    assert split.flops(grid) == sum(mixer.flops(grid) for mixer in split.mixers)
    assert HeadSplit(site, parts=parts).heads == [[0, 1], [1, 3], [3, 5]]


class Fitted(SoftmaxAttention):
    """Keeps what it starts from."""

    def init_from_teacher(self, weights: AttentionWeights, samples: Any) -> None:
        self.given = (weights, samples)


def test_parts_start_from_their_own_heads() -> None:
    torch.manual_seed(0)
    split = HeadSplit(SITE, parts=[partial(Merge, parts=[Fitted]), Fitted])
    weights, sample = random_teacher(SITE, Grid(4, 6))
    split.init_from_teacher(weights, [sample])
    first: Any = split.mixers[0].mixers[0]  # type: ignore[union-attr]
    given = [first.given, split.mixers[1].given]
    together = torch.zeros_like(sample.outputs)
    for own, samples in given:
        assert own.query.shape == (SITE.head_dim, SITE.channels) and own.out.shape == (SITE.channels, SITE.head_dim)
        assert isinstance(samples[0], SiteSamples)
        torch.testing.assert_close(samples[0].outputs, attend(own, sample.inputs, 1))
        together += samples[0].outputs - own.out_bias
    torch.testing.assert_close(together + weights.out_bias, sample.outputs)


def test_options_are_plain_and_make_an_equal_mixer() -> None:
    torch.manual_seed(0)
    inner = partial(Merge, parts=[NEAR, FAR], learned_balance=True)
    split = HeadSplit(SITE, parts=[inner, partial(NeighborhoodAttention, kernel_size=3)])
    plain = json.loads(json.dumps(split.options))
    assert plain["parts"][0]["class_path"] == "blocks.merge.Merge"
    far = plain["parts"][0]["init_args"]["parts"][1]
    assert far["class_path"] == "blocks.pooled_attention.PooledAttention"
    assert far["init_args"].items() >= {"tile": 2, "without_own": True}.items()
    again = HeadSplit(SITE, **plain)
    again.load_state_dict(split.state_dict())
    assert json.loads(json.dumps(again.options)) == plain


class WithoutPartial(CoreMixer):
    def flops(self, grid: Grid) -> int:
        return grid.tokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        return v


REFUSED: dict[str, tuple[Callable[[Site], Any], str]] = {
    "none": (partial(Merge, parts=[]), "Merge has no parts"),
    "none to split": (partial(HeadSplit, parts=[]), "HeadSplit has no parts"),
    "feature": (
        partial(Merge, parts=[NEAR, LinearAttention]),
        r"parts\.1 of Merge is LinearAttention, .* no core mixer",
    ),
    "feature to split": (partial(HeadSplit, parts=[LinearAttention]), r"parts\.0 of HeadSplit is LinearAttention"),
    "mass": (partial(Merge, parts=[WithoutPartial]), r"parts\.0 of Merge is WithoutPartial, which has no partial"),
    "mass inside": (
        partial(Merge, parts=[NEAR, partial(HeadSplit, parts=[WithoutPartial, FAR])]),
        r"parts\.1 of Merge is HeadSplit, which has no partial",
    ),
    "same keys": (partial(Merge, parts=[NEAR, NEAR]), r"parts\.0 \(TileAttention\) and parts\.1 .* see one key twice"),
    "all keys": (partial(Merge, parts=[FAR, SoftmaxAttention]), r"parts\.0 .* and parts\.1 \(SoftmaxAttention\) of"),
    "own pool": (partial(Merge, parts=[NEAR, partial(PooledAttention, tile=2)]), "see one key twice"),
    "other tiles": (
        partial(Merge, parts=[partial(TileAttention, tile=3), FAR]),
        "see one key twice",
    ),
    "window": (
        partial(Merge, parts=[NEAR, partial(NeighborhoodAttention, kernel_size=3)]),
        r"\(NeighborhoodAttention\) of Merge see one key twice",
    ),
    "no range": (partial(HeadSplit, parts=[NEAR], heads=[]), "for 1 parts: give a range for each part"),
    "overlap": (partial(HeadSplit, parts=[NEAR, FAR], heads=[[0, 2], [1, 2]]), "head 1 is in two of the ranges"),
    "gap": (partial(HeadSplit, parts=[NEAR], heads=[[1, 2]]), "head 0 is in none of the ranges"),
    "too few": (partial(HeadSplit, parts=[NEAR], heads=[[0, 1]]), r"up to 1, but .*attn1 has 2 heads"),
    "too many": (partial(HeadSplit, parts=[NEAR, FAR], heads=[[0, 2], [2, 4]]), r"up to 4, but .* has 2 heads"),
    "backwards": (partial(HeadSplit, parts=[NEAR], heads=[[2, 0]]), "a range is the first head and the one behind"),
    "three ends": (partial(HeadSplit, parts=[NEAR], heads=[[0, 1, 2]]), "a range is the first head"),
    "too many parts": (partial(HeadSplit, parts=[NEAR] * 3), "has 3 parts, and .* has 2 heads"),
    "not imported": (
        partial(Merge, parts=[{"class_path": "os.path.Merge"}]),
        r"parts\.0 of Merge is 'os\.path\.Merge', which is no mixer",
    ),
    "no class": (partial(Merge, parts=[{"init_args": {}}]), r"parts\.0 of Merge has init_args: give class_path"),
    "misspelt": (partial(HeadSplit, parts=[{"class_path": "x.Y", "init_arg": {}}]), "has class_path, init_arg: give"),
    "a text": (partial(Merge, parts=["TileAttention"]), r"parts\.0 of Merge is 'TileAttention': name a class"),
    "tile": (partial(Merge, parts=[partial(TileAttention, tile=0)]), "tile is one side .* got 0"),
    "tiles": (partial(PooledAttention, tile=[]), r"tile is one side .* got \[\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        make(SITE)


def test_parts_without_mass_are_split_all_the_same() -> None:
    split = HeadSplit(SITE, parts=[WithoutPartial, SoftmaxAttention])
    inputs = random_inputs(split, Grid(4, 6))
    assert not split.is_softmax and torch.equal(split.mix(*inputs, Grid(4, 6), 0.4)[:, 0], inputs[2][:, 0])
    with pytest.raises(ValueError, match=r"parts\.0 of HeadSplit is WithoutPartial, which has no partial"):
        split.partial(*inputs, Grid(4, 6), 0.4)
