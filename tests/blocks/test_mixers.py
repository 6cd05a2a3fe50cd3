"""Every mixer with every option: the contract, its reference in values and gradients, low precision, one graph."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blocks import (
    Adapted,
    AgentAttention,
    ClusterAttention,
    CoreMixer,
    DiscAttention,
    EstimatedAttention,
    FactorizedAttention,
    FocalAttention,
    FrequencyFilter,
    Gated,
    Grid,
    HeadSplit,
    KernelAttention,
    LargeKernelAttention,
    LinearAttention,
    LocalScan,
    Merge,
    NeighborhoodAttention,
    PooledAttention,
    PositionalAttention,
    RadialAttention,
    Regularized,
    ReweightedAttention,
    RoutedAttention,
    Site,
    TileAttention,
    TokenMerging,
    TokenMixer,
    VariedWindowAttention,
    WindowAttention,
)
from sparsight.testing import SITE, apply_mixer, check_mixer, random_inputs, relative_l2
from tests.tiny_rows import few

LINE, IMAGE, ODD, VIDEO = Grid(11), Grid(4, 6), Grid(9, 5), Grid(3, 5, 4)
NEAR = partial(NeighborhoodAttention, kernel_size=3)
MIXERS: dict[str, Callable[..., TokenMixer]] = {
    "neighborhood_dilated": partial(NeighborhoodAttention, kernel_size=[2, 3], dilation=[3, 2]),
    "neighborhood_strided": partial(NeighborhoodAttention, kernel_size=5, stride=3, dilation=2),
    "sliding_tiles": partial(NeighborhoodAttention, kernel_size=[2, 4, 4], stride=[1, 2, 2]),
    "disc": partial(DiscAttention, radius=2.5),
    "disc_oblong": partial(DiscAttention, radius=[2, 3]),
    "windows_shifted": partial(WindowAttention, window=4, shifts=[0, 0.5]),
    "windows_grid": partial(WindowAttention, window=3, dilation="grid"),
    "windows_dilated": partial(WindowAttention, window=[2, 3], dilation=[2, 1], shifts=[0.5]),
    "windows_halo": partial(WindowAttention, window=4, halo=2),
    "quarters_drawn": partial(WindowAttention, windows=2, shifts=[0, 0.25, 0.5, 0.75], drawn=True),
    "pooled_positions": partial(PooledAttention, tile=[2, 3], pooling="positions"),
    "pooled_channels": partial(PooledAttention, tile=2, pooling="channels"),
    "pooled_cells": partial(PooledAttention, cells=3),
    "pooled_expected": partial(PooledAttention, tile=3, pooling="expected"),
    "combiner": partial(
        Merge,
        parts=[
            partial(TileAttention, tile=[1, 4]),
            partial(PooledAttention, tile=[1, 4], without_own=True, pooling="expected", counted=False),
        ],
    ),
    "pooled_uncounted": partial(PooledAttention, tile=3, counted=False),
    "pooled_without_disc": partial(PooledAttention, tile=2, without=partial(DiscAttention, radius=2), counted=False),
    "near_and_pooled": partial(Merge, parts=[NEAR, partial(PooledAttention, tile=4, without=NEAR)]),
    "clear": partial(
        Merge,
        parts=[partial(DiscAttention, radius=2), partial(PooledAttention, tile=4, pooling="positions", counted=False)],
        shared_keys=True,
    ),
    "pyramid": partial(
        Merge,
        parts=[
            partial(TileAttention, tile=2),
            partial(PooledAttention, tile=2, within=4, without_own=True),
            partial(PooledAttention, tile=4, without_own=True),
        ],
    ),
    "focal": partial(FocalAttention, tile=3, cell=2),
    "focal_cells": partial(FocalAttention, tile=[2, 4], halo=[1, 2], cells=3),
    "hilo": partial(HeadSplit, parts=[partial(WindowAttention, window=2), partial(PooledAttention, tile=2)]),
    "linear_elu": partial(KernelAttention, feature_map="elu", normaliser="learned"),
    "linear_sana": partial(KernelAttention, feature_map="relu"),
    "linear_focused": partial(KernelAttention, feature_map="focused"),
    "inline": partial(KernelAttention, feature_map="identity", normaliser="subtractive"),
    "hedgehog": partial(KernelAttention, width=6),
    "rala": partial(KernelAttention, feature_map="elu", augmented=True),
    "lightning": partial(KernelAttention, feature_map="elu", normaliser="rms", decay="two"),
    "decay_four": partial(KernelAttention, feature_map="elu", decay="four"),
    "lolcats": partial(Merge, parts=[NEAR, partial(KernelAttention, without=NEAR)]),
    "sharp_and_diffuse": partial(
        HeadSplit, parts=[partial(WindowAttention, window=2), partial(PooledAttention, tile=2)], by_entropy=True
    ),
    "agents": partial(AgentAttention, cells=2),
    "agents_sd": partial(AgentAttention, cells=3, sharpness=0.3, shortcut=0.075),
    "proxies": partial(AgentAttention, cells=3, kind="proxy"),
    "merging": partial(TokenMerging, ratio=0.4),
    "merging_plain": partial(TokenMerging, ratio=0.7, cell=3, proportional=False),
    "routed": partial(RoutedAttention, tile=2, keep=3, rest=None),
    "routed_pooled": partial(RoutedAttention, tile=[2, 3], keep=0.3),
    "routed_gate": partial(RoutedAttention, tile=3, keep=2, router="gate"),
    "routed_tree": partial(RoutedAttention, tile=2, keep=3, router="tree"),
    "routed_tree_fine": partial(RoutedAttention, tile=1, keep=2, router="tree", rest=None),
    "routed_linear": partial(RoutedAttention, tile=2, keep=0.3, rest="linear"),
    "adapted": partial(
        Adapted, part=partial(TileAttention, tile=3), trained_tokens=16, value_kernel=3, predicted=True, gated=True
    ),
    "adapted_inline": partial(
        Adapted,
        part=partial(KernelAttention, feature_map="identity", normaliser="subtractive"),
        temperature=False,
        value_kernel=3,
    ),
    "adapted_pooled": partial(Adapted, part=partial(TileAttention, tile=3), pooled=[1, 2]),
    "regularized": partial(
        Regularized, part=partial(Adapted, part=partial(TileAttention, tile=3)), diversity=0.1, distractor=0.1
    ),
    "positions": partial(PositionalAttention, gate="open"),
    "positions_gated": PositionalAttention,
    "softplus": ReweightedAttention,
    "softplus_threshold": partial(ReweightedAttention, power=2.0, threshold=0.9),
    "clusters": partial(ClusterAttention, group=7, cells=2),
    "clusters_alone": partial(ClusterAttention, group=10, neighbours=0, cells=3, rounds=0),
    "estimated": partial(EstimatedAttention, tile=2, keep=3),
    "estimated_basis": partial(EstimatedAttention, estimate="basis", tile=[2, 3], keep=0.3),
    "varied_windows": partial(VariedWindowAttention, window=[2, 3]),
    "factorized": partial(FactorizedAttention, window=3),
    "factorized_dilated": partial(FactorizedAttention, window=[2, 3], dilation=2),
    "radial": partial(RadialAttention, reach=2),
    "local_scan": partial(LocalScan, window=3, width=0.5),
    "large_kernel": partial(LargeKernelAttention, kernel_size=7, dilation=2),
    "frequencies": partial(FrequencyFilter, groups=4),
    "gated_ela": partial(Gated, reach=3),
    "gated_polarized": partial(Gated, part=partial(LinearAttention, branch_dim=None), gate="polarized"),
    "gated_ulsam": partial(Gated, gate="ulsam", groups=2),
    "gated_gaussian": partial(Gated, gate="gaussian", groups=2),
}
OBVIOUS = ("large_kernel", "gated_ela", "gated_polarized", "gated_ulsam", "gated_gaussian")
"""Mixers whose form is the slow one already."""
IMAGES = ("large_kernel", "local_scan")
"""Mixers that serve two axes alone."""
CONTRACT = ("quarters_drawn", "pyramid", "proxies", "merging", "routed_gate")

QUICK = (
    "neighborhood_strided",
    "disc",
    "windows_shifted",
    "near_and_pooled",
    "focal",
    "lolcats",
    "decay_four",
    "adapted",
    "estimated",
    *CONTRACT,
)
TRANSPOSABLE = ("disc", "windows_halo", "windows_grid")
EAGER = (
    "local_scan",
    "lightning",
    "decay_four",
    "frequencies",
    "routed_tree",
    "routed_tree_fine",
    "softplus",
    "softplus_threshold",
)
"""Mixers that walk over chunks or levels, or transform, by graphs of their own for every size."""
MASKED = (
    "neighborhood_dilated",
    "neighborhood_strided",
    "sliding_tiles",
    "disc",
    "disc_oblong",
    "near_and_pooled",
    "clear",
    "lolcats",
    "radial",
)
"""Mixers whose gathered keys are not all seen."""


def site(grid: Grid) -> Site:
    """A site whose grids have as many axes as this one."""
    return dataclasses.replace(SITE, grid=Grid(*(8 for _ in grid.sizes)))


@pytest.mark.parametrize(  # to positions alone queries do not matter, as the contract asks
    "name", few([name for name in MIXERS if name != "positions"], "frequencies", *CONTRACT)
)
def test_keeps_the_contract(name: str) -> None:
    check_mixer(MIXERS[name], transposable=name in TRANSPOSABLE)


@pytest.mark.parametrize("name", few([name for name in MIXERS if name not in (*OBVIOUS, *IMAGES)], *QUICK))
@pytest.mark.parametrize("grid", few([LINE, IMAGE, ODD, VIDEO], ODD, VIDEO), ids=str)
def test_is_its_reference_in_values_and_gradients(name: str, grid: Grid) -> None:
    torch.manual_seed(0)
    mixer: Any = _moved(MIXERS[name](site(grid)))
    inputs = [part.requires_grad_() for part in random_inputs(mixer, grid)]
    sources = [*inputs, *mixer.parameters()]
    scale = (0.4,) if isinstance(mixer, CoreMixer) else ()
    expected = mixer.reference(*inputs, grid, *scale)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = mixer.partial(*inputs, grid, 0.4) if len(expected) > 1 else (mixer(*inputs, grid, *scale),)
    weights = [torch.randn_like(part) for part in expected]
    for one, other in zip(found, expected, strict=True):
        assert relative_l2(one, other) < 1e-5
    gradients = [_gradients(each, weights, sources) for each in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert relative_l2(one, other) < 1e-4 or float(other.norm()) < 1e-5
    if len(expected) > 1:
        assert relative_l2(mixer(*inputs, grid, 0.4), expected[0]) < 1e-5


@pytest.mark.parametrize("name", few([name for name in MIXERS if name not in IMAGES], "windows_shifted"))
@pytest.mark.parametrize("grid", few([LINE, ODD, VIDEO], VIDEO), ids=str)
def test_bfloat16_is_near_float32(name: str, grid: Grid) -> None:
    torch.manual_seed(0)
    mixer = _moved(MIXERS[name](site(grid)))
    low = copy.deepcopy(mixer).to(torch.bfloat16)
    inputs = [part.to(torch.bfloat16) for part in random_inputs(mixer, grid)]
    rounded = copy.deepcopy(low).float()
    assert relative_l2(apply_mixer(low, inputs, grid), apply_mixer(rounded, [x.float() for x in inputs], grid)) < 5e-2


@pytest.mark.parametrize(
    "name", few([name for name in MIXERS if name not in MASKED], "quarters_drawn", "routed_linear")
)
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    mixer = MIXERS[name](SITE).eval()
    for grid in (Grid(12, 10), Grid(7, 9)):
        with torch.device("meta"):
            inputs, mixer = [part.to("meta") for part in random_inputs(mixer, grid, batch=1)], mixer.to("meta")
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            apply_mixer(mixer, inputs, grid)
        assert counter.get_total_flops() == mixer.flops(grid), grid


GRAPHS = {"neighborhood_strided": 3}  # sides that stride or dilation divides are cut otherwise


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MIXERS if name not in EAGER])
def test_compiles_to_one_graph(name: str) -> None:
    torch.manual_seed(0)
    mixer = _moved(MIXERS[name](SITE))
    torch._dynamo.reset()
    counted: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        counted.append(graph)
        return graph.forward

    def passed(sides: Tensor, *inputs: Tensor) -> Tensor:
        scale = (0.4,) if isinstance(mixer, CoreMixer) else ()
        output: Tensor = mixer(*inputs, Grid(*sides.shape[1:]), *scale)
        return output

    compiled = torch.compile(passed, fullgraph=True, backend=backend)
    for grid in (Grid(12, 10), Grid(10, 14), Grid(15, 20), Grid(20, 16)):
        inputs = [torch.empty(0, *grid.sizes), *random_inputs(mixer, grid)]
        assert relative_l2(compiled(*inputs), passed(*inputs)) < 1e-5
    torch._dynamo.reset()
    assert len(counted) <= GRAPHS.get(name, 2)  # one for the first size, and one for all others


def _moved(mixer: TokenMixer) -> TokenMixer:
    """Away from a start that may hold zeros."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def _gradients(outputs: Any, weights: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    pairs = zip(outputs, weights, strict=True)
    total = torch.stack([(out * weight).masked_fill(out.isinf(), 0).sum() for out, weight in pairs]).sum()
    found = torch.autograd.grad(total, sources, allow_unused=True)
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


@pytest.mark.parametrize("grid", [IMAGE, ODD], ids=str)
def test_a_scan_by_chunks_is_the_scan_by_tokens(grid: Grid) -> None:
    torch.manual_seed(0)
    mixer: Any = _moved(MIXERS["local_scan"](SITE))
    (hidden,) = random_inputs(mixer, grid)
    sources = [hidden.requires_grad_(), *mixer.parameters()]
    found, expected = mixer(hidden, grid), mixer.reference(hidden, grid)
    assert relative_l2(found, expected) < 1e-5
    weight = torch.randn_like(found)
    gradients = [_gradients((each,), [weight], sources) for each in (found, expected)]
    assert all(
        relative_l2(one, other) < 1e-3 or float(other.norm()) < 1e-4 for one, other in zip(*gradients, strict=True)
    )
