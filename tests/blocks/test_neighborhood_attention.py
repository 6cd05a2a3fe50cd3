"""Neighbourhood attention against a naive double loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blocks import Grid, NeighborhoodAttention, Site
from blocks.base import _warn_once
from sparsight.testing import relative_l2
from tests.tiny_extras import needs


def site(grid: Grid) -> Site:
    return Site("attn1", channels=12, heads=3, head_dim=4, grid=grid)


def inputs(grid: Grid, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, grid.tokens, 4)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def window(position: int, side: int, length: int) -> range:
    """Keys of a query along one axis, by the border rule of NATTEN: the centre is clamped, then `side` tokens."""
    if side >= length:
        return range(length)
    centre = min(max(position, side // 2), length - 1 - (side // 2 + side % 2 - 1))
    return range(centre - side // 2, centre - side // 2 + side)


def reference(q, k, v, grid, sides, scale):
    """Neighbourhood attention, one query at a time."""
    out = []
    for y in range(grid.height):
        for x in range(grid.width):
            rows, columns = window(y, sides[0], grid.height), window(x, sides[1], grid.width)
            keys = [row * grid.width + column for row in rows for column in columns]
            logits = (q[:, :, y * grid.width + x, None] * k[:, :, keys]).sum(-1) * scale
            out.append((logits.softmax(-1)[..., None] * v[:, :, keys]).sum(2))
    return torch.stack(out, 2)


@pytest.mark.parametrize("sides", [3, 4, (2, 5), 1, 9], ids=str)
@pytest.mark.parametrize("grid", [Grid(6, 9), Grid(5, 3), Grid(1, 4)], ids=lambda g: f"{g.height}x{g.width}")
def test_equals_double_loop_in_values_and_gradients(grid, sides):
    pair = (sides, sides) if isinstance(sides, int) else sides
    fast, slow = inputs(grid), inputs(grid)
    mixed = NeighborhoodAttention(site(grid), kernel_size=sides).mix(*fast, grid, 0.7)
    expected = reference(*slow, grid, pair, 0.7)
    assert relative_l2(mixed, expected) < 1e-5
    upstream = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    (mixed * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for one, other in zip(fast, slow, strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-4


@pytest.mark.parametrize("sides", [3, 4, (2, 7)], ids=str)
def test_every_query_has_the_same_number_of_keys(sides):
    grid = Grid(5, 8)
    mixer = NeighborhoodAttention(site(grid), kernel_size=sides)
    keys = min(mixer.kernel_size[0], 5) * min(mixer.kernel_size[1], 8)
    assert (mixer.mask(grid).sum(1) == keys).all()
    assert mixer.flops(grid) == 4 * 40 * keys * 12


def test_window_over_the_whole_grid_is_full_softmax():
    grid = Grid(4, 7)
    mixer = NeighborhoodAttention(site(grid), **NeighborhoodAttention.exact_limit(site(grid), grid))
    q, k, v = inputs(grid)
    assert mixer.mask(grid).all()
    assert relative_l2(mixer.mix(q, k, v, grid, 0.5), F.scaled_dot_product_attention(q, k, v, scale=0.5)) < 1e-5


def test_bfloat16_stays_close_to_float32():
    grid = Grid(5, 6)
    mixer = NeighborhoodAttention(site(grid), kernel_size=3)
    low = mixer.mix(*inputs(grid, torch.bfloat16), grid, 0.5)
    assert low.dtype == torch.bfloat16
    assert relative_l2(low.float(), mixer.mix(*inputs(grid), grid, 0.5)) < 2e-2


@pytest.mark.parametrize("bad", [0, (3, 0), (3, 3, 3, 3), ()], ids=str)
def test_impossible_windows_are_refused(bad):
    with pytest.raises(ValueError, match="kernel_size"):
        NeighborhoodAttention(site(Grid(4, 4)), kernel_size=bad)


AXES = {
    "plain": {},
    "dilated": {"dilation": 2},
    "strided": {"stride": 3},
    "each": {"kernel_size": [2, 5], "dilation": [3, 1]},
}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("options", AXES.values(), ids=AXES)
def test_flex_sees_what_the_mask_says(options):
    for grid in (Grid(7, 6), Grid(5), Grid(3, 2, 4)):
        mixer = NeighborhoodAttention(site(grid), **{"kernel_size": 3, **options}, backend="flex")
        q, k, v = (each.detach() for each in inputs(grid))
        assert mixer.serving_backend(grid, q) == "flex"
        assert relative_l2(mixer.mix(q, k, v, grid, 0.7), mixer.reference(q, k, v, grid, 0.7)[0]) < 1e-5


@needs("natten")
@pytest.mark.parametrize("options", [*AXES.values(), {"kernel_size": 4, "stride": 2}], ids=[*AXES, "even"])
def test_natten_sees_what_the_mask_says(options):
    for grid in (Grid(9, 8), Grid(9), Grid(6, 7, 8)):
        wide = Site("attn1", channels=32, heads=2, head_dim=16, grid=grid)  # its kernels take no narrow heads
        mixer = NeighborhoodAttention(wide, **{"kernel_size": 3, **options}, backend="natten")
        q, k, v = torch.randn(3, 2, 2, grid.tokens, 16, generator=torch.Generator().manual_seed(0))
        reason = mixer.missing_backend("natten", grid, q)
        if options is AXES["each"] and len(grid.sizes) == 3:  # two windows, so of one frame
            assert "no window of one token" in reason
        else:
            assert reason == ""
            expected = mixer.reference(q, k, v, grid, 0.7)
            assert relative_l2(mixer.mix(q, k, v, grid, 0.7), expected[0]) < 1e-5
            for part, other in zip(mixer.partial(q, k, v, grid, 0.7), expected, strict=True):
                assert part.shape == other.shape and relative_l2(part, other) < 1e-5


def test_natten_gives_way_where_it_is_not_there(monkeypatch):
    monkeypatch.setattr("blocks.ops.natten.why_missing", lambda name: f"No module named '{name}'")
    grid = Grid(5, 4)
    mixer, plain = (NeighborhoodAttention(site(grid), kernel_size=3, backend=name) for name in ("natten", "torch"))
    _warn_once.cache_clear()
    with pytest.warns(UserWarning, match="computed with torch, not with natten: No module .*: install natten in the"):
        mixed = mixer.mix(*inputs(grid), grid, 0.7)
    assert relative_l2(mixed, plain.mix(*inputs(grid), grid, 0.7)) < 1e-6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kernel_size": 1}, "no window of one token"),
        ({"kernel_size": 3, "dilation": 2}, "an axis of 6 tokens for a window of 3 with dilation 2"),
    ],
)
def test_windows_that_natten_refuses_are_told(options, reason, monkeypatch):
    monkeypatch.setattr("blocks.ops.natten.why_missing", lambda name: "")
    mixer = NeighborhoodAttention(site(Grid(5, 5)), **options, backend="natten")
    assert reason in mixer.missing_backend("natten", Grid(5, 5), torch.zeros(1, 1, 25, 8))


def test_flex_gives_way_to_torch_and_says_why_once():
    _warn_once.cache_clear()
    grid = Grid(3, 3)
    mixer, plain = (NeighborhoodAttention(site(grid), kernel_size=3, backend=name) for name in ("flex", "torch"))
    with pytest.warns(
        UserWarning, match="NeighborhoodAttention is computed with torch, not with flex: .*no backward"
    ) as seen:
        for _ in range(2):
            mixed = mixer.mix(*inputs(grid), grid, 0.7)
    assert len(seen) == 1 and mixed.requires_grad
    assert relative_l2(mixed, plain.mix(*inputs(grid), grid, 0.7)) < 1e-6
    for like, reason in (
        (torch.zeros(1, 1, 9, 8, device="meta"), "no kernel for the device meta"),
        (torch.zeros(1, 1, 9, 8, dtype=torch.float64), ""),
    ):
        assert reason in mixer.missing_backend("flex", grid, like)
    with pytest.raises(ValueError, match="backend of NeighborhoodAttention is one of torch, flex, natten; got 'fast'"):
        NeighborhoodAttention(site(grid), backend="fast")


@pytest.mark.slow
def test_flex_compiles_with_what_is_around_it():
    grid = Grid(6, 5)
    mixer = NeighborhoodAttention(site(grid), kernel_size=3, backend="flex")
    q, k, v = (each.detach() for each in inputs(grid))
    with torch.no_grad():
        mixed = torch.compile(mixer, fullgraph=True)(q, k, v, grid, 0.7)
    assert relative_l2(mixed, mixer.reference(q, k, v, grid, 0.7)[0]) < 1e-5
