"""A mixer that does not match its reference is found out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from blocks import (
    CoreMixer,
    DeltaConvBlock,
    FeatureMixer,
    Grid,
    KernelAttention,
    NeighborhoodAttention,
    Site,
    SoftmaxAttention,
)
from sparsight.diffusion.measure.verify import TOLERANCES, verify
from sparsight.testing import SITE
from tests.tiny_mixers import Scaled, WrongKernel

CPU = torch.device("cpu")


class RightKernel(Scaled):
    """As a fused kernel would be: it refuses float64, but has a reference."""

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        if hidden_BNC.dtype == torch.float64:
            raise RuntimeError("no kernel for double")
        return hidden_BNC / 2

    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return hidden_BNC / 2


class NoReference(RightKernel):
    reference = None  # type: ignore[assignment]  # how a class says that it lacks a method


class Overflows(Scaled):
    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return (hidden_BNC * 1e4).square().sqrt() / 2e4


class SingleOnly(Scaled):
    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        if hidden_BNC.dtype == torch.float16:
            raise NotImplementedError("not implemented for 'Half'")
        return hidden_BNC / 2


class WrongLimit(SoftmaxAttention):
    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        return super().mix(q, k, v, grid, 1.1 * scale)


class WrongFast(NeighborhoodAttention):
    """Equally wrong in every precision, and without a limit that would tell."""

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> None:
        return None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        return super().mix(q, k, v, grid, 1.1 * scale)


class WrongCore(CoreMixer):
    def flops(self, grid: Grid) -> int:
        return grid.tokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        return v + scale * k

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        return v + 2 * scale * k


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("mixer", "against"),
    [
        (DeltaConvBlock, "its reference"),
        (partial(NeighborhoodAttention, kernel_size=5), "its reference and softmax at its exact limit"),
        (SoftmaxAttention, "its reference and softmax at its exact limit"),
        (KernelAttention, "its reference"),
    ],
)
def test_our_mixers_pass_in_every_precision(mixer, against: str, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    verdict = verify(mixer(SITE), dtype=dtype, device=CPU)
    assert (verdict.refusal, verdict.against) == ("", against)
    assert verdict.error <= TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("mixer", "dtype", "refusal"),
    [
        (WrongKernel, torch.float32, "does not match its reference: relative L2 error 5.0e-02"),
        (WrongCore, torch.float32, "does not match its reference"),
        (WrongFast, torch.float32, "does not match its reference: relative L2 error"),
        (WrongLimit, torch.float32, "does not match its reference and softmax at its exact limit"),
        (Overflows, torch.float16, "does not match itself in float64: relative L2 error inf"),
        (SingleOnly, torch.float16, "does not run in torch.float16 on cpu: not implemented for 'Half'"),
        (NoReference, torch.float32, "unverified, give it a `reference` method"),
    ],
)
def test_what_is_wrong_is_refused(mixer: type[FeatureMixer], dtype: torch.dtype, refusal: str) -> None:
    assert verify(mixer(SITE), dtype=dtype, device=CPU).refusal.startswith(refusal)


def test_a_reference_of_its_own_is_used() -> None:
    verdict = verify(RightKernel(SITE), dtype=torch.float32, device=CPU)
    assert (verdict.refusal, verdict.against, verdict.error) == ("", "its reference", 0.0)


def test_the_mixer_and_the_random_numbers_are_left_alone() -> None:
    mixer = DeltaConvBlock(Site("a", 16, 2, 8, Grid(4, 4)))
    before, state = {n: p.clone() for n, p in mixer.named_parameters()}, torch.get_rng_state()
    verify(mixer, dtype=torch.bfloat16, device=CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in mixer.named_parameters())
