"""Mixers of users that lack something: told by what they lack, before anything is computed or by what they gave."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from blocks.base import CoreMixer, FeatureMixer, Grid, Site
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.surgery.replace import replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from tests import tiny


class WithoutFlops(FeatureMixer):
    """Lacks a method."""

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """As it is."""
        return hidden_BNC


class Whole(WithoutFlops):
    """Has it."""

    def flops(self, grid: Grid) -> int:
        """None."""
        return 0


class WithoutSite(Whole):
    """Takes none."""

    def __init__(self, kernel_size: int = 5) -> None:
        super().__init__(kernel_size)  # type: ignore[arg-type]


class Forgets(Whole):
    """Does not keep its option."""

    def __init__(self, site: Site, *, kernel_size: int = 5) -> None:
        super().__init__(site)


class Shortens(Whole):
    """Loses a token."""

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Without the last one."""
        return hidden_BNC[:, 1:]


class ShortensCore(CoreMixer):
    """Loses a token of the queries."""

    def flops(self, grid: Grid) -> int:
        """None."""
        return 0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Without the last one."""
        return v[:, :, 1:]


@pytest.mark.parametrize(
    ("mixer", "said"),
    [
        (
            WithoutFlops,
            r"a mixer for transformer_blocks\.0\.attn1 cannot be made: .*WithoutFlops .*flops.*; .*your_own",
        ),
        (lambda site: WithoutSite(site=site), r"a mixer for .* cannot be made: .*'site'; what a mixer must have is in"),
        (Forgets, r"Forgets does not keep its option kernel_size: write self\.kernel_size = kernel_size"),
    ],
)
def test_what_a_mixer_lacks_is_told(mixer: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        replace(tiny.dit(), mixer)


@pytest.mark.parametrize("mixer", [Shortens, ShortensCore])
def test_another_shape_is_told_with_the_mixer(mixer: Any) -> None:
    denoiser = tiny.dit()
    set_mode(replace(denoiser, mixer).values(), Mode.STUDENT)
    with pytest.raises(
        ValueError, match=rf"{mixer.__name__} at transformer_blocks\.0\.attn1 gives \(.* keeps the shape"
    ):
        tiny.run(denoiser, (8, 8))
