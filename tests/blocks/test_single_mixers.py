"""What single mixers are: what they refuse, where they start, and what they come to in their limits."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

from blocks import (
    Adapted,
    DiscAttention,
    EstimatedAttention,
    FactorizedAttention,
    Gated,
    Grid,
    HeadSplit,
    KernelAttention,
    LargeKernelAttention,
    Merge,
    NeighborhoodAttention,
    PooledAttention,
    RoutedAttention,
    TileAttention,
    VariedWindowAttention,
    WindowAttention,
)
from blocks.ops.coarse_to_fine import choose, level_cells
from sparsight.testing import SITE, random_inputs, random_teacher, relative_l2

NEAR = partial(NeighborhoodAttention, kernel_size=3)
LOLCATS = partial(Merge, parts=[NEAR, partial(KernelAttention, without=NEAR)])
REFUSED = {
    "no window": (partial(NeighborhoodAttention, kernel_size=0), "kernel_size is one number .* at least 1, got 0"),
    "stride": (partial(NeighborhoodAttention, kernel_size=3, stride=4), "stride of NeighborhoodAttention is 4"),
    "radius": (partial(DiscAttention, radius=0), "radius is one positive number"),
    "shift": (partial(WindowAttention, shifts=[1.0]), r"shifts of WindowAttention are \[1.0\]"),
    "shifts": (partial(WindowAttention, shifts=[0, 0.3, 0.6]), "and transformer_blocks.0.attn1 has 2 heads"),
    "drawn": (partial(WindowAttention, drawn=True, halo=1), "drawn shifts .* go with dilation 1 and halo 0 alone"),
    "word": (partial(WindowAttention, dilation="grids"), "'grids': give numbers of tokens, or grid"),
    "pooling": (partial(PooledAttention, pooling="max"), "'max': give one of mean, positions, channels"),
    "weights of any tile": (partial(PooledAttention, pooling="channels", cells=3), "cells make tiles of any size"),
    "no level": (
        partial(PooledAttention, tile=3, within=8),
        "within of PooledAttention is 8, no multiple of its tile 3",
    ),
    "two": (partial(PooledAttention, tile=2, within=4, without=NEAR), "leave cells and without out"),
    "far": (partial(PooledAttention, without=PooledAttention), "name a local mixer"),
    "several": (partial(PooledAttention, without=partial(WindowAttention, shifts=[0, 0.5])), "has several shifts"),
    "router": (partial(RoutedAttention, router="trees"), "'trees' and 'pooled': give one of mean, gate, tree"),
    "estimate": (partial(EstimatedAttention, estimate="low rank"), "'low rank': give linear or basis"),
    "columns": (partial(EstimatedAttention, keep=1.5), "keep of EstimatedAttention is 1.5"),
    "no distance": (partial(FactorizedAttention, dilation=0), "dilation of FactorizedAttention is 0"),
    "twice": (partial(Merge, parts=[NEAR, partial(PooledAttention, tile=2)]), "of Merge see one key twice"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        make(SITE)


def test_weights_of_a_tile_serve_grids_with_its_axes_alone() -> None:
    mixer = PooledAttention(SITE, tile=2, pooling="positions")
    with pytest.raises(ValueError, match="learned weights for tiles of 2 axes, and a grid of 3 came"):
        mixer.mix(*random_inputs(mixer, Grid(2, 4, 4)), Grid(2, 4, 4), 0.4)


@pytest.mark.parametrize(("radius", "keys"), [(8, 193), (16, 793), (32, 3205)])
def test_discs_hold_as_many_tokens_as_published(radius: int, keys: int) -> None:
    assert DiscAttention(SITE, radius=radius).flops(Grid(64, 64)) == 4 * 64**2 * keys * 16


@pytest.mark.parametrize("gate", ["ela", "polarized", "ulsam"])
def test_gates_start_as_one(gate: str) -> None:
    torch.manual_seed(0)
    gated: Any = Gated(SITE, gate=gate)
    inputs = random_inputs(gated, Grid(9, 5))
    torch.testing.assert_close(gated(*inputs, Grid(9, 5)), gated.mixer(*inputs, Grid(9, 5)))


def test_a_large_kernel_starts_as_attention_of_each_token_to_itself_and_then_reaches_far() -> None:
    weights, samples = random_teacher(SITE, Grid(9, 9))
    mixer = LargeKernelAttention(SITE, kernel_size=7, dilation=2)
    mixer.init_from_teacher(weights, [samples])
    value = torch.nn.functional.linear(samples.inputs, weights.value, weights.value_bias)
    expected = torch.nn.functional.linear(value, weights.out, weights.out_bias)
    torch.testing.assert_close(mixer(samples.inputs, samples.grid), expected)
    hidden = samples.inputs[:1].clone().requires_grad_()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mixer(hidden, samples.grid)[0, 40].sum().backward()
    assert hidden.grad is not None
    seen = hidden.grad[0].any(-1).view(9, 9)
    assert seen[4, :].sum() == 9 and seen[4 - 4, 4 - 4]  # 3 and 3 * 2 taps, of 5 = 2 * 2 + 1 and 4 -> 5


def test_a_fit_comes_nearer_to_the_teacher_and_is_left_out_where_it_is_told_too_little() -> None:
    torch.manual_seed(0)
    weights, samples = random_teacher(SITE, SITE.grid)
    q, k, v = weights.projected(samples.inputs, SITE.heads)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=weights.scale)
    for make in (
        KernelAttention,
        partial(Adapted, part=partial(TileAttention, tile=3), value_kernel=3, gated=True),
        LOLCATS,
    ):
        mixer: Any = make(SITE)
        before = relative_l2(mixer(q, k, v, SITE.grid, weights.scale), expected)
        unfit = copy.deepcopy(mixer)
        unfit.init_from_teacher(weights, [dataclasses.replace(samples, outputs=samples.outputs.flip(1))])
        assert relative_l2(unfit(q, k, v, SITE.grid, weights.scale), expected) == pytest.approx(before)
        mixer.init_from_teacher(weights, [samples])
        after = relative_l2(mixer(q, k, v, SITE.grid, weights.scale), expected)
        assert after < 0.97 * before, type(mixer).__name__


def test_sharp_heads_go_to_the_first_part() -> None:
    torch.manual_seed(0)
    site = dataclasses.replace(SITE, heads=4, head_dim=4)
    weights, samples = random_teacher(site, site.grid)
    factor = torch.tensor([0.3, 3.0, 0.1, 6.0]).repeat_interleave(4)[:, None]
    weights = dataclasses.replace(weights, query=weights.query * factor)
    near, far = partial(WindowAttention, window=2), partial(PooledAttention, cells=1)
    split: Any = HeadSplit(site, parts=[near, far], by_entropy=True)
    split.init_from_teacher(weights, [samples])
    again: Any = HeadSplit(site, parts=[near, far], by_entropy=True)
    again.load_state_dict(split.state_dict())
    q, k, v = weights.projected(samples.inputs, 4)
    mixed = again.to(torch.float32)(q, k, v, site.grid, 0.5)
    for which, part in (([1, 3], near), ([0, 2], far)):
        alone = part(dataclasses.replace(site, heads=2))
        expected = alone.mix(q[:, which], k[:, which], v[:, which], site.grid, 0.5)
        torch.testing.assert_close(mixed[:, which], expected)


@pytest.mark.parametrize("decay", ["two", "four"])
def test_without_decay_a_scan_is_linear_attention(decay: str) -> None:
    torch.manual_seed(0)
    scan: Any = KernelAttention(SITE, feature_map="elu", decay=decay)
    plain: Any = KernelAttention(SITE, feature_map="elu")
    with torch.no_grad():
        scan.rate.fill_(-40.0)
    q, k, v = random_inputs(scan, Grid(9, 11))  # of two chunks
    for one, other in zip(
        scan.partial(q, k, v, Grid(9, 11), 0.4), plain.partial(q, k, v, Grid(9, 11), 0.4), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [Grid(13), Grid(9, 6), Grid(3, 5, 4)], ids=str)
def test_a_tree_keeps_what_a_walk_through_its_cells_finds(grid: Grid) -> None:
    torch.manual_seed(0)
    kept, places = 2, torch.cartesian_prod(*(torch.arange(size) for size in grid.sizes)).view(grid.tokens, -1)
    queries, keys = torch.randn(1, 1, 5, 8), torch.randn(1, 1, grid.tokens, 8)
    found = choose(queries, keys, torch.ones(grid.tokens), grid, kept)
    levels = len(level_cells(grid, kept))
    assert levels > 2
    for query, chosen in zip(queries[0, 0], found[0, 0], strict=True):
        candidates = {tuple(place.tolist()) for place in places // 2 ** (levels - 1)}
        for level in reversed(range(levels)):
            cell_of = [tuple(place.tolist()) for place in places // 2**level]
            members = {cell: [i for i, each in enumerate(cell_of) if each == cell] for cell in candidates}
            score = {cell: float(query @ keys[0, 0, inside].mean(0)) for cell, inside in members.items()}
            best = sorted(candidates, key=lambda cell, score=score: -score[cell])[:kept]
            inside_best = [i for cell in best for i in members[cell]]
            candidates = {tuple((places[i] // 2 ** max(level - 1, 0)).tolist()) for i in inside_best}
        assert sorted(chosen.tolist()) == sorted(inside_best)


def test_an_estimate_learns_which_keys_hold_the_teachers_mass() -> None:
    torch.manual_seed(0)
    weights, samples = random_teacher(SITE, SITE.grid)
    q, k, v = weights.projected(samples.inputs, SITE.heads)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=weights.scale)
    mixer: Any = EstimatedAttention(SITE, tile=2, keep=0.25)
    before = relative_l2(mixer(q, k, v, SITE.grid, weights.scale), expected)
    untrained = mixer.auxiliary_loss().detach()
    mixer.init_from_teacher(weights, [samples])
    after = relative_l2(mixer(q, k, v, SITE.grid, weights.scale), expected)
    assert after < 0.9 * before and mixer.auxiliary_loss().detach() < 0.7 * untrained


def test_a_varied_window_is_where_it_says() -> None:
    torch.manual_seed(0)
    site, grid = dataclasses.replace(SITE, grid=Grid(12)), Grid(12)
    mixer: Any = VariedWindowAttention(site, window=4)
    q, k, v = random_inputs(mixer, grid)
    with torch.no_grad():
        mixer.change.bias.view(site.heads, 2, 1)[0, 1] = 1.0  # one window further, for the first head
        mixer.change.bias.view(site.heads, 2, 1)[1, 0] = -1.0  # all in the middle of the window, for the second
        mixed = mixer(q, k, v, grid, 0.4)
    further = torch.nn.functional.scaled_dot_product_attention(q[:, 0, 4:8], k[:, 0, 8:12], v[:, 0, 8:12], scale=0.4)
    torch.testing.assert_close(mixed[:, 0, 4:8], further)
    torch.testing.assert_close(mixed[:, 0, 8:12], v[:, 0, 11:].expand(-1, 4, -1))  # beyond the grid: its border
    torch.testing.assert_close(mixed[:, 1, :4], v[:, 1, 1:3].mean(1, keepdim=True).expand(-1, 4, -1))
    with pytest.raises(ValueError, match="moves windows along 1 axes, and a grid of 2 came"):
        mixer(q, k, v, Grid(3, 4), 0.4)


def test_untrained_the_rest_by_counted_means_comes_nearest_to_a_diffuse_teacher() -> None:
    torch.manual_seed(0)
    grid, site = Grid(16, 16), dataclasses.replace(SITE, grid=Grid(16, 16))
    weights, samples = random_teacher(site, grid)
    q, k, v = weights.projected(samples.inputs, 2)
    scale = 0.5 * weights.scale
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

    def error(*parts: Any, **options: Any) -> float:
        return relative_l2(
            Merge(site, parts=list(parts), learned_balance=False, **options)(q, k, v, grid, scale), expected
        )

    uncounted = error(NEAR, partial(PooledAttention, tile=4, without=NEAR, counted=False))
    counted = error(NEAR, partial(PooledAttention, tile=4, without=NEAR))
    assert counted < 0.7 * uncounted and counted < 0.5 * error(NEAR)
    assert counted < relative_l2(v.mean(2, keepdim=True).expand_as(v), expected)
