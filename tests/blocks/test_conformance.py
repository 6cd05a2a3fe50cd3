"""Every mixer keeps the promises of `blocks.base`, a user's own too, and the check catches those that do not."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from blocks import (
    CoreMixer,
    DeltaConvBlock,
    FeatureMixer,
    Grid,
    HeadSplit,
    LinearAttention,
    Merge,
    NeighborhoodAttention,
    NoMixing,
    PooledAttention,
    Site,
    SoftmaxAttention,
    TileAttention,
)
from sparsight.testing import SITE, check_mixer
from tests.tiny_rows import few

TILE = partial(TileAttention, tile=4)
FAR = partial(PooledAttention, tile=4, without_own=True)
MIXERS = {
    "delta_conv": DeltaConvBlock,
    "delta_conv_paper": partial(DeltaConvBlock, preset="paper_pixart", kernel_size=5),
    "delta_conv_released": partial(DeltaConvBlock, preset="released_sd15", kernel_size=5),
    "delta_conv_plain": partial(DeltaConvBlock, pool_branch=False, merge="sum", scales=[1, 1 / 3], kernel_size=0.5),
    "linear": LinearAttention,
    "linear_narrow": partial(LinearAttention, branch_dim=1 / 4),
    "linear_plain": partial(LinearAttention, branch_dim=None),
    "neighborhood": partial(NeighborhoodAttention, kernel_size=3),
    "neighborhood_flex": partial(NeighborhoodAttention, kernel_size=3, backend="flex"),
    "neighborhood_even": partial(NeighborhoodAttention, kernel_size=(4, 2)),
    "no_mixing": NoMixing,
    "softmax": SoftmaxAttention,
    "tile": TILE,
    "tile_oblong": partial(TileAttention, tile=(2, 5)),
    "pooled": partial(PooledAttention, tile=3),
    "pooled_far": FAR,
    "merge": partial(Merge, parts=[TILE, FAR], learned_balance=False),
    "merge_balanced": partial(Merge, parts=[TILE, FAR], balance_penalty=0.1),
    "merge_of_merges": partial(Merge, parts=[partial(Merge, parts=[TILE]), FAR]),
    "head_split": partial(HeadSplit, parts=[partial(NeighborhoodAttention, kernel_size=3), SoftmaxAttention]),
    "head_split_merge": partial(
        HeadSplit,
        parts=[partial(Merge, parts=[TILE, FAR], learned_balance=True), partial(PooledAttention, tile=2)],
        heads=[[1, 2], [0, 1]],
    ),
}


@pytest.mark.parametrize("name", few(MIXERS, *(name for name in MIXERS if name != "neighborhood_flex")))
def test_shipped_mixers_conform(name):
    check_mixer(MIXERS[name])


@pytest.mark.parametrize("name", ["linear", "neighborhood", "no_mixing", "softmax", "tile", "pooled", "merge"])
def test_symmetric_mixers_commute_with_transposition(name):
    check_mixer(MIXERS[name], transposable=True)


class MeanMixer(FeatureMixer):
    """What a user might write first: one linear map of the image's mean, with an option."""

    def __init__(self, site: Site, *, gain: float = 1.0) -> None:
        super().__init__(site)
        self.gain = gain
        self.linear = nn.Linear(site.channels, site.channels)

    def flops(self, grid: Grid) -> int:
        return 2 * grid.tokens * self.site.channels**2

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return hidden_BNC + self.gain * self.linear(hidden_BNC.mean(1, keepdim=True))


def test_own_mixer_conforms():
    check_mixer(partial(MeanMixer, gain=0.5), transposable=True)


class MixesBatch(MeanMixer):
    def forward(self, hidden_BNC, grid):
        return super().forward(hidden_BNC, grid) + hidden_BNC.mean(0)


class DropsOut(MeanMixer):
    def forward(self, hidden_BNC, grid):
        return nn.functional.dropout(super().forward(hidden_BNC, grid), 0.5, self.training)

    def __init__(self, site: Site, *, gain: float = 1.0) -> None:
        super().__init__(site, gain=gain)
        self.eval()  # what the check must not be fooled by


class HasDeadParameter(MeanMixer):
    def __init__(self, site: Site, *, gain: float = 1.0) -> None:
        super().__init__(site, gain=gain)
        self.dead = nn.Parameter(torch.ones(1))


class Overflows(MeanMixer):
    def forward(self, hidden_BNC, grid):
        return super().forward(hidden_BNC, grid) + 0 * (100 * hidden_BNC) ** 2


class ForgetsOption(MeanMixer):
    def __init__(self, site: Site, *, gain: float = 1.0) -> None:
        super().__init__(site, gain=2 * gain)


class CountsConstantFlops(MeanMixer):
    def flops(self, grid):
        return 7


class LooksAtColumnsOnly(MeanMixer):
    def forward(self, hidden_BNC, grid):
        image = hidden_BNC.unflatten(1, (grid.height, grid.width))
        return super().forward((image + image.cumsum(2)).flatten(1, 2), grid)


class ClaimsToBeExact(CoreMixer):
    @classmethod
    def exact_limit(cls, site, grid):
        return {}

    def flops(self, grid):
        return grid.tokens

    def mix(self, q, k, v, grid, scale):
        return v + 0 * (q + k)


class TellsNoMass(SoftmaxAttention):
    def partial(self, q, k, v, grid, scale):
        output, lse = super().partial(q, k, v, grid, scale)
        return output, torch.zeros_like(lse) + 0 * lse


class TellsTwiceTheKeys(SoftmaxAttention):
    def partial(self, q, k, v, grid, scale):
        output, lse = super().partial(q, k, v, grid, scale)
        return output, lse + math.log(2)


class MixesOtherwiseInParts(SoftmaxAttention):
    def partial(self, q, k, v, grid, scale):
        output, lse = super().partial(q, k, v, grid, 2 * scale)
        return output, lse


class PadsToLess(SoftmaxAttention):
    def padded(self, grid):
        return Grid(1, 1)


class PadsForNothing(SoftmaxAttention):
    def padded(self, grid):
        return Grid(grid.height, -(-grid.width // 4) * 4)


class AddsItsSizeToTheLoss(MeanMixer):
    def auxiliary_loss(self):
        return self.linear.weight.detach().square().mean()


class AddsARowToTheLoss(MeanMixer):
    def auxiliary_loss(self):
        return self.linear.weight.square().mean(0)


class HasASecondForm(MeanMixer):
    backends: ClassVar[dict[str, str]] = {"torch": "", "twice": "nothing"}

    def __init__(self, site: Site, *, gain: float = 1.0, backend: str = "torch") -> None:
        super().__init__(site, gain=gain)
        self.backend = self.checked_backend(backend)

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return super().forward(hidden_BNC, grid) * (1 + (self.serving_backend(grid, hidden_BNC) == "twice"))


class HasAnotherReference(MeanMixer):
    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return 1.01 * self(hidden_BNC, grid)


class HasNoOptionForItsForm(MeanMixer):
    backends: ClassVar[dict[str, str]] = {"torch": "", "fast": "nothing"}


BROKEN = {
    HasAnotherReference: "the mixer and its reference differ",
    HasASecondForm: "backend twice of HasASecondForm differs from torch",
    HasNoOptionForItsForm: "no option 'backend'",
    PadsToLess: "which is smaller",
    PadsForNothing: "but it is padded to",
    AddsItsSizeToTheLoss: "has no gradient",
    AddsARowToTheLoss: "one number is needed",
    MixesBatch: "mixed with each other",
    DropsOut: "differ in train mode",
    HasDeadParameter: "no gradient reaches parameter 'dead'",
    Overflows: "not finite",
    ForgetsOption: "build a mixer with",
    CountsConstantFlops: "flops do not grow",
    LooksAtColumnsOnly: "transposed image",
    ClaimsToBeExact: "exact limit",
    TellsNoMass: "log-sum-exp is not that of the weights|teacher's log-sum-exp",
    TellsTwiceTheKeys: "teacher's log-sum-exp",
    MixesOtherwiseInParts: "partial and mix differ|teacher's log-sum-exp",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda c: c.__name__)
def test_broken_mixers_are_caught(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_mixer(broken, transposable=broken is LooksAtColumnsOnly)


def test_positional_options_are_caught():
    class Positional(MeanMixer):
        def __init__(self, site: Site, gain: float = 1.0) -> None:
            super().__init__(site, gain=gain)

    with pytest.raises(AssertionError, match="'gain' must be keyword-only"):
        check_mixer(Positional)


def test_options_of_a_mixer_built_by_rule_are_resolved():
    mixer = DeltaConvBlock(SITE, preset="released_sd15", kernel_size={"transformer_blocks.*": 0.6})
    assert mixer.options["kernel_size"] == 5
    assert mixer.options["entry_width"] == 8
