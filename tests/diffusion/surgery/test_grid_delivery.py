"""Grids reach every site, and no forward pass looks through all modules for them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from blocks import DeltaConvBlock, SoftmaxAttention
from blocks.base import Grid
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.place import put
from sparsight.diffusion.surgery.replace import replace, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.student import OnGrid, sites_on_grid, transformer_stacks
from tests import tiny


@torch.no_grad()
def delivered(denoiser: nn.Module, size: tuple[int, int]) -> list[Grid | None]:
    tiny.run(denoiser, size)
    return [module.grid for module in denoiser.modules() if isinstance(module, OnGrid)]


@pytest.mark.parametrize("make", [tiny.dit, tiny.unet])
@pytest.mark.parametrize("mixer", [DeltaConvBlock, SoftmaxAttention])
def test_modules_are_looked_through_once(make: Any, mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser: Any = make()
    shells = replace(denoiser, mixer)
    set_mode(shells.values(), Mode.STUDENT)
    first = delivered(denoiser, (8, 8))
    walks: list[nn.Module] = []
    plain = nn.Module.named_modules

    def counting(module: nn.Module, *args: Any, **options: Any) -> Any:
        walks.append(module)
        return plain(module, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "named_modules", counting)
        tiny.run(denoiser, (8, 16) if make is tiny.unet else (16, 16))
    stacks = transformer_stacks(denoiser, family_of(denoiser).stacks)
    assert not [module for module in walks if any(module is stack for stack in [denoiser, *stacks])]
    then = [module.grid for module in denoiser.modules() if isinstance(module, OnGrid)]
    assert all(a and b and b.tokens in (2 * a.tokens, 4 * a.tokens) for a, b in zip(first, then, strict=True))


def test_whatever_changes_below_a_stack_is_noticed() -> None:
    denoiser: Any = tiny.dit()
    shells = replace(denoiser, DeltaConvBlock)
    set_mode(shells.values(), Mode.STUDENT)
    delivered(denoiser, (8, 8))
    kept = sites_on_grid(denoiser)
    assert sites_on_grid(denoiser) is kept
    path, shell = next(iter(shells.items()))
    put(denoiser, path, shell.as_student())
    assert set(delivered(denoiser, (16, 16))) == {Grid(8, 8)} and sites_on_grid(denoiser) is not kept
    denoiser.transformer_blocks[0] = copy.deepcopy(denoiser.transformer_blocks[1])
    assert set(delivered(denoiser, (8, 8))) == {Grid(4, 4)}
    denoiser.transformer_blocks.append(copy.deepcopy(denoiser.transformer_blocks[1]))
    assert set(delivered(denoiser, (16, 16))) == {Grid(8, 8)}
    del denoiser.transformer_blocks[0]
    assert set(delivered(denoiser, (8, 8))) == {Grid(4, 4)}


def test_copies_know_their_own_sites() -> None:
    denoiser: Any = tiny.dit()
    set_mode(replace(denoiser, DeltaConvBlock).values(), Mode.STUDENT)
    delivered(denoiser, (8, 8))
    for twin in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):
        assert set(delivered(twin, (16, 16))) == {Grid(8, 8)}
        assert {shell.grid for shell in shells_of(denoiser).values()} == {Grid(4, 4)}
    torch.testing.assert_close(tiny.run(twin, (8, 8)), tiny.run(denoiser, (8, 8)))
