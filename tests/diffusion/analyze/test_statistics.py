"""Statistics of attention maps against plain computations on whole ones, in float64; memory; known laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from blocks.base import Grid, Layout
from sparsight.common.measure.memory import peak_bytes
from sparsight.diffusion.analyze.attention import maps
from sparsight.diffusion.analyze.attention.maps import Maps
from sparsight.diffusion.analyze.attention.rank import COLUMNS, projected, ranks
from sparsight.diffusion.analyze.attention.statistics import Measured, measure
from sparsight.diffusion.analyze.attention.sums import decay, mass_within, receptive_field

FLAT = Layout(Grid(5, 7))
JOINT = Layout(Grid(4, 6), before=3, after=2)
VIDEO = Layout(Grid(3, 4, 2), after=5)


def qk(layout: Layout, *, sharp: float = 2.0, batch: int = 3, heads: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    tokens = layout.grid.tokens + layout.others
    q, k = (sharp * torch.randn(batch, heads, tokens, 8, dtype=torch.float64) for _ in range(2))
    return q, k


def whole(q: Tensor, k: Tensor, layout: Layout, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of image to image, rows summing to 1, and the share that falls on text."""
    attention = (q @ k.mT * scale).softmax(-1)
    image = slice(layout.before, layout.before + layout.grid.tokens)
    attention = attention[:, :, image]
    to_image = attention[..., image]
    inside = to_image.sum(-1)
    return to_image / inside[..., None], 1 - inside


def distances(grid: Grid) -> Tensor:
    place = [divide(token, grid.sizes) for token in range(grid.tokens)]
    return torch.tensor(
        [[max(abs(a - b) for a, b in zip(one, other, strict=True)) for other in place] for one in place]
    )


def divide(token: int, sizes: tuple[int, ...]) -> list[int]:
    """Position of a token, the last axis fastest."""
    place = []
    for size in reversed(sizes):
        place.append(token % size)
        token //= size
    return place[::-1]


def high(maps_: Tensor, grid: Grid) -> Tensor:
    """Butterworth's high-pass by the full complex transform."""
    axes = tuple(range(-len(grid.sizes), 0))
    waves = torch.meshgrid(*(torch.fft.fftfreq(size, dtype=torch.float64) for size in grid.sizes), indexing="ij")
    frequency = sum(wave**2 for wave in waves) ** 0.5
    gain = torch.where(frequency > 0, 1 / (1 + (0.125 / frequency) ** 4), 0.0)
    spectrum = torch.fft.fftn(maps_.unflatten(-1, grid.sizes), dim=axes)
    return torch.fft.ifftn(spectrum * gain, dim=axes).real.flatten(-len(grid.sizes))


def rank_90(matrix: Tensor) -> int:
    energy = torch.linalg.svdvals(matrix).square()
    return int((energy.cumsum(0) < 0.9 * energy.sum() * (1 - 1e-6)).sum()) + 1


def by_distance(values: Tensor, grid: Grid) -> Tensor:
    apart = distances(grid)
    return torch.stack([(values * (apart == r)).sum((-2, -1)) / grid.tokens for r in range(max(grid.sizes))], -1)


@pytest.mark.parametrize("layout", [FLAT, JOINT, VIDEO], ids=["image", "joint", "video"])
def test_every_statistic_is_that_of_whole_maps(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "CHUNK", 6 * 4 * layout.grid.tokens)  # 4 rows at a time, which divide no grid here
    q, k = qk(layout)
    found = measure(q, k, layout, 0.3, queries=10_000)
    a, text = whole(q, k, layout, 0.3)
    entropy = -(a * a.log()).sum(-1)
    expected = {
        "entropy": entropy.mean(-1),
        "effective_keys": entropy.exp().mean(-1),
        "low_frequency_share": (1 - high(a, layout.grid).square().sum(-1) / a.square().sum(-1)).mean(-1),
        "rank": torch.tensor([[rank_90(matrix) for matrix in sample] for sample in a]).double(),
    }
    received = a.mean(-2)
    outlying = received > 10 / layout.grid.tokens
    expected["outlier_tokens"], expected["outlier_share"] = outlying.sum(-1).double(), (received * outlying).sum(-1)
    expected["top_key_share"] = received.max(-1).values
    expected["row_similarity"] = torch.cosine_similarity(a, a.mean(-2, keepdim=True), dim=-1).mean(-1)
    if layout.others:
        expected["text_share"] = text.mean(-1)
    torch.testing.assert_close(found.means, expected)
    torch.testing.assert_close(found.top_key, received.argmax(-1))
    torch.testing.assert_close(found.mass, by_distance(a, layout.grid))
    torch.testing.assert_close(found.high_mass, by_distance(high(a, layout.grid).abs(), layout.grid))
    torch.testing.assert_close(found.pairs, by_distance(torch.ones_like(a[0, 0]), layout.grid))


def test_a_part_of_the_queries_gives_the_statistics_of_their_rows() -> None:
    q, k = qk(FLAT)
    rows = Maps(q, k, FLAT, 0.3, queries=11).index_n
    assert len(rows.unique()) == 11
    found = measure(q, k, FLAT, 0.3, queries=11)
    a = whole(q, k, FLAT, 0.3)[0][:, :, rows]
    torch.testing.assert_close(found.means["entropy"], -(a * a.log()).sum(-1).mean(-1))
    torch.testing.assert_close(found.means["top_key_share"], a.mean(-2).max(-1).values)
    torch.testing.assert_close(found.means["rank"], torch.tensor([[rank_90(m) for m in each] for each in a]).double())
    near = (distances(FLAT.grid)[rows] <= 1).double()
    torch.testing.assert_close(found.mass[..., :2].sum(-1), (a * near).sum(-1).mean(-1))


def test_a_key_that_draws_all_attention_is_an_outlier() -> None:
    layout = Layout(Grid(8, 8))
    q, k = qk(layout, sharp=0.1, batch=1, heads=1)
    q[..., 0], k[..., 0] = 1, 0
    k[:, :, 37, 0] = 40
    found = measure(q, k, layout, 0.3, queries=64)
    assert found.means["outlier_tokens"].item() == 1
    assert found.top_key.item() == 37
    assert found.means["outlier_share"].item() == pytest.approx(1, abs=1e-3)
    assert found.means["rank"].item() == 1


def test_the_rank_of_larger_maps_is_close_and_ends_at_the_projections_width() -> None:
    """Windows of several sizes: maps of high, middling and low rank."""
    grid, found, expected = Grid(14, 14), [], []
    place = torch.cartesian_prod(torch.arange(14.0), torch.arange(14.0)).double()
    for width in (0.2, 0.06, 0.02):
        q = torch.cat([place, torch.ones(196, 1), -place.square().sum(-1, keepdim=True) / 2], -1)[None, None] * width
        k = torch.cat([place, -place.square().sum(-1, keepdim=True) / 2, torch.ones(196, 1)], -1)[None, None] / width
        maps_ = Maps(q, k, Layout(grid), width, queries=196)
        (rows,) = maps_
        a = rows.weights
        found.append(int(ranks(maps_, a @ projected(maps_), a.square().sum((-2, -1)))))
        expected.append(min(COLUMNS, rank_90(a[0, 0])))
    assert expected[0] > expected[1] > expected[2]
    assert found == pytest.approx(expected, rel=0.1, abs=1)


def test_memory_does_not_grow_with_the_map() -> None:
    """4096 tokens: one map has 64 MiB in float32, and its transform as much again."""
    layout = Layout(Grid(64, 64))
    q, k = (torch.randn(1, 1, 4096, 4) for _ in range(2))
    peak = peak_bytes(lambda: measure(q, k, layout, 0.5, queries=4096), torch.device("cpu"))
    assert peak < 48 * 2**20


def test_a_wide_batch_is_taken_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = qk(FLAT, batch=5)
    together = measure(q, k, FLAT, 0.3, queries=35)
    monkeypatch.setattr("sparsight.diffusion.analyze.attention.statistics.CHUNK", 2 * 2 * 35 * COLUMNS)  # two samples
    apart: Measured = measure(q, k, FLAT, 0.3, queries=35)
    torch.testing.assert_close(apart.means, together.means)
    torch.testing.assert_close(apart.mass, together.mass)


def test_windows_fields_and_decay_are_read_from_the_curve() -> None:
    curve = [0.5, 0.25, 0.05, 0.2]
    assert (mass_within(curve, 1), mass_within(curve, 3)) == (0.5, 0.75)
    assert receptive_field(curve) == 5
    assert receptive_field([0.0, 0.0]) is None
    law = [9.0] + [3 * r**-2.5 for r in range(1, 6)]
    assert decay(law, [1.0, 5, 4, 3, 2, 1]) == pytest.approx(2.5)
    assert decay([1.0, 0.5], [1.0, 8.0]) is None
    assert decay([1.0, 0.5, None, 0.5 / math.sqrt(3)], [1, 4, 0, 2]) == pytest.approx(0.5)
