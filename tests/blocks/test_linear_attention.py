"""Linear attention against the N x N form of the same equation, and against its published cost."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blocks import Grid, LinearAttention, Site
from sparsight.diffusion.families.known import published
from sparsight.diffusion.measure.flops import mixer_flops
from sparsight.diffusion.surgery.replace import finalize, replace
from sparsight.diffusion.surgery.sites import probe_grids, students
from sparsight.testing import random_teacher, relative_l2
from tests import tiny
from tests.tiny import run

GRIDS = [Grid(6, 6), Grid(5, 9), Grid(7, 2), Grid(1, 3), Grid(1, 1)]
SITE = Site("attn1", channels=24, heads=3, head_dim=8, grid=Grid(6, 6))


@pytest.mark.parametrize("branch_dim", [1.0, 5, None], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.height}x{g.width}")
def test_equals_the_quadratic_form_in_values_and_gradients(grid: Grid, branch_dim: int | float | None) -> None:
    mixer = LinearAttention(SITE, branch_dim=branch_dim).double()
    hidden_BNC = torch.randn(2, grid.tokens, 24, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, grid.tokens, 24, dtype=torch.float64)
    sources = (hidden_BNC, *mixer.parameters())
    linear, quadratic = mixer(hidden_BNC, grid), mixer.reference(hidden_BNC, grid)
    assert relative_l2(linear, quadratic) < 1e-12
    gradients = [torch.autograd.grad((output * upstream).sum(), sources) for output in (linear, quadratic)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_tokens_with_large_queries_keys_and_values_stay_in_range(dtype: torch.dtype) -> None:
    """Written as published, products here leave float16's range, and the error is 0.2."""
    grid = Grid(40, 33)
    mixer = LinearAttention(SITE)
    with torch.no_grad():
        for linear in (mixer.query, mixer.key, mixer.value):
            linear.weight *= 100
    hidden_BNC = torch.randn(1, grid.tokens, 24).to(dtype)
    answer = copy.deepcopy(mixer).to(dtype)(hidden_BNC, grid)
    assert answer.dtype == dtype
    assert answer.isfinite().all()
    rounded = copy.deepcopy(mixer).to(dtype).double()
    assert relative_l2(answer, rounded(hidden_BNC.double(), grid)) < 6e-2


@pytest.mark.parametrize("branch_dim", [1.0, 6, None], ids=str)
def test_flops_are_those_of_the_formula_and_of_the_counter(branch_dim: int | float | None) -> None:
    grid, channels, width = Grid(12, 7), 24, {1.0: 24, 6: 6, None: 0}[branch_dim]
    expected = grid.tokens * (8 * channels**2 + 8 * channels * width + 4 * channels * 8 + 2 * channels)
    with torch.device("meta"):
        mixer = LinearAttention(SITE, branch_dim=branch_dim)
        hidden_BNC = torch.empty(1, grid.tokens, channels)
    counter = FlopCounterMode(display=False)
    with counter:
        mixer(hidden_BNC, grid)
    assert mixer.flops(grid) == expected == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "branch_dim", "latent", "giga", "millions"),
    [
        ("sd15", 1.0, 64, 105.6, 99.2),
        pytest.param("sd15", 1.0, 512, 6756, 99.2, marks=pytest.mark.slow),
        pytest.param("sdxl", 1 / 16, 128, 1025, 435.5, marks=pytest.mark.slow),
        pytest.param("pixart_sigma", 1.0, 128, 2474, None, marks=pytest.mark.slow),
    ],
)
def test_published_networks_cost_what_the_specification_says(
    name: str, branch_dim: float, latent: int, giga: float, millions: float | None
) -> None:
    """diffusion_mixers.md, sections 2.1 (millions of parameters) and 5.4 (giga-FLOPs of all sites, batch 1)."""
    with torch.device("meta"):
        denoiser = published(name)
        replace(denoiser, partial(LinearAttention, branch_dim=branch_dim))
    grids, mixers = probe_grids(denoiser, (latent, latent)), students(denoiser)
    flops = sum(mixer_flops(student.mixer, grids[path]) for path, student in mixers.items())
    assert flops / 1e9 == pytest.approx(giga, rel=1e-3)
    if millions is not None:
        count = sum(p.numel() for student in mixers.values() for p in student.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=2e-3)


def test_starts_with_the_projections_of_the_teacher_and_without_branches() -> None:
    weights, samples = random_teacher(SITE, SITE.grid)
    mixer = LinearAttention(SITE)
    mixer.init_from_teacher(weights, [samples])
    for name in ("query", "key", "value", "out"):
        assert torch.equal(getattr(mixer, name).weight, getattr(weights, name))
        assert torch.equal(getattr(mixer, name).bias, getattr(weights, f"{name}_bias"))
    plain = LinearAttention(SITE, branch_dim=None)
    plain.load_state_dict({k: v for k, v in mixer.state_dict().items() if "branch" not in k})
    torch.testing.assert_close(mixer(samples.inputs, samples.grid), plain(samples.inputs, samples.grid))
    mixer(samples.inputs, samples.grid).square().sum().backward()
    assert mixer.query_branch is not None
    assert mixer.query_branch[-1].weight.grad.any()  # the branch can leave zero


def test_stands_in_denoisers_of_every_family_and_compiles_to_one_graph() -> None:
    for make in tiny.FAMILIES.values():
        denoiser = make().eval()
        replace(denoiser, LinearAttention)
        finalize(denoiser)
        assert run(denoiser, (16, 16)).isfinite().all()
    mixer, hidden_BNC = LinearAttention(SITE), torch.randn(2, 35, 24)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden_BNC, Grid(7, 5)), mixer(hidden_BNC, Grid(7, 5)))


@pytest.mark.parametrize(("branch_dim", "width"), [(0, None), (None, None), (1 / 16, 2), (1e-6, 1), (7, 7)])
def test_widths_of_the_branches(branch_dim: int | float | None, width: int | None) -> None:
    assert LinearAttention(SITE, branch_dim=branch_dim).options == {"branch_dim": width}


def test_impossible_width_is_refused() -> None:
    with pytest.raises(ValueError, match="branch_dim"):
        LinearAttention(SITE, branch_dim=-1)
