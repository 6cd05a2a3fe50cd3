"""The start from a teacher: closer than random, and still ahead after equally many optimiser steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blocks import AttentionWeights, DeltaConvBlock, Grid, Site, SiteSamples
from blocks.delta_conv import _fitted_kernels
from sparsight.testing import attend, random_teacher, relative_l2

GRID = Grid(8, 8)
SITE = Site("transformer_blocks.0.attn1", channels=32, heads=4, head_dim=8, grid=GRID)
VARIANTS = {
    "default": {},
    "paper": {"preset": "paper_pixart", "kernel_size": 5},
    "released": {"preset": "released_sdxl", "kernel_size": 7},
    "released_pixart": {"preset": "released_pixart", "kernel_size": 7},
    "paper_biasless": {"preset": "paper_pixart", "kernel_size": 3, "depthwise_bias": False, "pool_branch": False},
}


@pytest.fixture(scope="module")
def teacher() -> tuple[AttentionWeights, SiteSamples, SiteSamples]:
    """Weights, what it did on 64 images, and on 32 other ones."""
    torch.manual_seed(3)
    weights, seen = random_teacher(SITE, GRID, batch=96)
    parts = [SiteSamples(seen.inputs[i], seen.outputs[i], GRID) for i in (slice(64), slice(64, 96))]
    return weights, parts[0], parts[1]


@torch.no_grad()
def error(mixer: DeltaConvBlock, samples: SiteSamples) -> float:
    return relative_l2(mixer(samples.inputs, samples.grid), samples.outputs)


def train(mixer: DeltaConvBlock, samples: SiteSamples, steps: int) -> None:
    optimiser = torch.optim.Adam(mixer.parameters(), lr=3e-3)
    for _ in range(steps):
        images = torch.randperm(len(samples.inputs))[:16]
        loss = F.mse_loss(mixer(samples.inputs[images], samples.grid), samples.outputs[images])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("variant", VARIANTS)
def test_starts_closer_and_stays_ahead_in_equally_many_steps(variant, teacher, record_property):
    weights, seen, unseen = teacher
    torch.manual_seed(0)
    random = DeltaConvBlock(SITE, **VARIANTS[variant])
    fitted = DeltaConvBlock(SITE, **VARIANTS[variant])
    fitted.init_from_teacher(weights, [seen])
    before = error(random, unseen), error(fitted, unseen)
    for mixer in (random, fitted):
        torch.manual_seed(1)
        train(mixer, seen, 40)
    after = error(random, unseen), error(fitted, unseen)
    record_property("relative_l2", {"random": (before[0], after[0]), "fitted": (before[1], after[1])})
    assert before[1] < 0.9 * before[0]
    assert after[1] < 0.9 * after[0]
    assert after[1] < before[1]


def test_every_parameter_can_learn_after_the_start(teacher):
    weights, seen, _ = teacher
    for options in VARIANTS.values():
        mixer = DeltaConvBlock(SITE, **options)
        mixer.init_from_teacher(weights, [seen])
        F.mse_loss(mixer(seen.inputs, GRID), seen.outputs).backward()
        assert all(parameter.grad.any() for parameter in mixer.parameters())


def test_uniform_attention_is_the_pool_branch_alone():
    """With equal keys everywhere, attention is W_o W_v of the mean, which the block holds exactly."""
    torch.manual_seed(0)
    weights, seen = random_teacher(SITE, GRID, batch=4)
    uniform = AttentionWeights(**{**vars(weights), "key": torch.zeros_like(weights.key)})
    samples = SiteSamples(seen.inputs, attend(uniform, seen.inputs, SITE.heads), GRID)
    mixer = DeltaConvBlock(SITE)
    mixer.init_from_teacher(uniform, [samples])
    torch.testing.assert_close(mixer.pool.weight, weights.out @ weights.value, atol=1e-4, rtol=1e-3)
    fresh = random_teacher(SITE, Grid(5, 9))[1].inputs
    expected = attend(uniform, fresh, SITE.heads)
    assert relative_l2(mixer(fresh, Grid(5, 9)), expected) < 1e-3


def test_kernels_of_a_convolution_are_found_again():
    value, kernels = torch.randn(8, 3, 9, 7), torch.randn(3, 1, 5, 5)
    mixed = F.conv2d(value, kernels, padding=2, groups=3)
    assert relative_l2(_fitted_kernels(value, mixed, 5), kernels[:, 0]) < 0.05


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 5), Grid(3, 2)], ids=lambda g: f"{g.height}x{g.width}")
def test_tiny_grids_and_mixed_grids_leave_a_finite_start(grid):
    weights, tiny = random_teacher(SITE, grid, batch=2)
    larger = SiteSamples(*(torch.randn(2, 54, 32) for _ in range(2)), Grid(6, 9))
    mixer = DeltaConvBlock(SITE)
    mixer.init_from_teacher(weights, [tiny, larger])
    assert mixer(tiny.inputs, grid).abs().max() < 100
    assert mixer(larger.inputs, larger.grid).abs().max() < 100


def test_start_without_samples_is_refused(teacher):
    with pytest.raises(ValueError, match="at least one batch"):
        DeltaConvBlock(SITE).init_from_teacher(teacher[0], [])
