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
    AgentAttention,
    DiscAttention,
    EstimatedAttention,
    FactorizedAttention,
    FocalAttention,
    Gated,
    Grid,
    HeadSplit,
    KernelAttention,
    LargeKernelAttention,
    Merge,
    NeighborhoodAttention,
    PooledAttention,
    PositionalAttention,
    Regularized,
    ReweightedAttention,
    RoutedAttention,
    SoftmaxAttention,
    TileAttention,
    VariedWindowAttention,
    WindowAttention,
)
from blocks.ops.coarse_to_fine import choose, level_cells
from blocks.ops.neighbours import neighbour_means
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
    "open": (partial(PositionalAttention, gate="ajar"), "'ajar': give learned, open or closed"),
    "sharp": (
        partial(ReweightedAttention, threshold=1.0),
        "power and threshold of ReweightedAttention are 3.0 and 1.0",
    ),
    "scales": (partial(Adapted, pooled=[0]), r"pooled of Adapted is \[0\]"),
    "gaussians": (partial(Gated, gate="gaussian", gaussians=0), "gaussians of Gated is 0"),
    "negative": (partial(Regularized, diversity=-1.0), "diversity and distractor of Regularized are -1.0 and 0.0"),
    "no mass": (partial(Regularized, part=AgentAttention, distractor=1.0), "AgentAttention, which has no partial"),
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


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(7, 5), Grid(2, 3, 4)])
def test_a_tile_that_covers_the_grid_is_attention_and_a_loss_still_reaches_the_balance(grid: Grid) -> None:
    mixer = FocalAttention(SITE, tile=8, halo=0, cells=2)
    q, k, v = random_inputs(mixer, grid)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.4)
    learning = mixer.mix(q, k, v, grid, 0.4)
    torch.testing.assert_close(learning, expected)
    learning.square().sum().backward()
    assert mixer.balance is not None and mixer.balance.grad is not None and not mixer.balance.grad.any()
    with torch.no_grad():
        assert torch.equal(mixer.mix(q, k, v, grid, 0.4), expected)
        torch.testing.assert_close(mixer.partial(q, k, v, grid, 0.4), mixer.reference(q, k, v, grid, 0.4))
    assert mixer.flops(grid) == 4 * grid.tokens**2 * SITE.heads * SITE.head_dim


@pytest.mark.parametrize(("radius", "keys"), [(8, 193), (16, 793), (32, 3205)])
def test_discs_hold_as_many_tokens_as_published(radius: int, keys: int) -> None:
    assert DiscAttention(SITE, radius=radius).flops(Grid(64, 64)) == 4 * 64**2 * keys * 16


@pytest.mark.parametrize("gate", ["ela", "polarized", "ulsam", "gaussian"])
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
    mixer.requires_grad_(False).init_from_teacher(weights, [samples])  # as an analysis lets a candidate start
    assert not any(parameter.requires_grad for parameter in mixer.parameters())
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


def test_neighbours_are_those_of_the_grid() -> None:
    grid = Grid(3, 4, 5)
    x = torch.randn(1, 1, grid.tokens, 2)
    found, image = neighbour_means(x, 2, grid).view(*grid.sizes, 2), x.view(*grid.sizes, 2)
    for place in [(0, 0, 0), (1, 2, 2), (2, 3, 4)]:
        near = [
            [at for at in (each - 2, each, each + 2) if 0 <= at < size]
            for each, size in zip(place, grid.sizes, strict=True)
        ]
        expected = torch.stack([image[a, b, c] for a in near[0] for b in near[1] for c in near[2]]).mean(0)
        torch.testing.assert_close(found[place], expected)


def test_heads_that_look_at_one_place_are_told_from_those_that_look_at_content() -> None:
    torch.manual_seed(0)
    grid = Grid(6, 6)
    site = dataclasses.replace(SITE, grid=grid)
    mixer: Any = PositionalAttention(site, gate="learned")
    v = torch.randn(4, 2, grid.tokens, 16)
    q, k = 3 * torch.randn(4, 2, grid.tokens, 16), torch.randn(4, 2, grid.tokens, 16)
    target = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    place = torch.cartesian_prod(torch.arange(6), torch.arange(6)).float()
    below = torch.exp(-(place - torch.tensor([1.0, 0.0]) - place[:, None]).square().sum(-1))
    target[:, 0] = (below / below.sum(-1, keepdim=True)) @ v[:, 0]  # the first head looks one row down
    mixer.fit_places(v, target, grid)
    assert mixer.locality[0] > 0.8 and mixer.locality[1] < 0.3
    torch.testing.assert_close(mixer.place[0], torch.tensor([1.0, 0.0]), atol=0.2, rtol=0.0)


def test_rows_at_a_time_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer: Any = ReweightedAttention(SITE, threshold=0.5)
    q, k, v = random_inputs(mixer, Grid(4, 5))
    monkeypatch.setattr("blocks.reweighted_attention._ROWS", 7)
    torch.testing.assert_close(mixer(q, k, v, Grid(4, 5), 0.4), mixer.reference(q, k, v, Grid(4, 5), 0.4))


def test_maps_that_are_alike_and_images_that_distract_cost_loss() -> None:
    torch.manual_seed(0)
    grid = Grid(6, 6)
    part = partial(Adapted, part=SoftmaxAttention)
    mixer: Any = Regularized(SITE, part=part, diversity=1.0)
    q, k, v = random_inputs(mixer, grid)

    def likeness(sharpness: float) -> float:
        mixer(q * sharpness, k, v, grid, 0.4)
        return float(mixer.auxiliary_loss().detach())

    weights = (q * 2 @ k.mT * 0.4).softmax(-1).mean(1)
    exact = torch.cosine_similarity(weights, weights.mean(1, keepdim=True), dim=-1).mean()
    assert likeness(0.0) == pytest.approx(1.0) and likeness(2.0) == pytest.approx(float(exact), abs=0.15)
    assert likeness(20.0) < likeness(2.0) < likeness(0.5)
    mixer = Regularized(SITE, part=part, diversity=0.0, distractor=1.0)
    mixer(q, k, v, grid, 0.4)
    apart = mixer.auxiliary_loss().detach()
    both = torch.cat([k, k.roll(1, 0)], 2), torch.cat([v, v.roll(1, 0)], 2)
    own = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.4)
    change = torch.nn.functional.scaled_dot_product_attention(q, *both, scale=0.4) - own
    torch.testing.assert_close(apart, change.square().mean() / own.square().mean())
    mixer.eval()(q, k, v, grid, 0.4)
    assert mixer.auxiliary_loss() is None


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
