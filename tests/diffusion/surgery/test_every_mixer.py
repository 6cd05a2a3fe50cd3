"""Every mixer stands in denoisers of every kind: U-Net, DiT, beside text, and on three axes where it serves them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import blocks
from blocks import TokenMixer
from sparsight.diffusion.export.standalone import standalone
from sparsight.diffusion.surgery.replace import finalize, replace
from tests import tiny
from tests.tiny import run
from tests.tiny_flux import flux
from tests.tiny_rows import few
from tests.tiny_sd3 import sd35
from tests.tiny_wan import wan

MIXERS = sorted(
    name
    for name, kind in vars(blocks).items()
    if isinstance(kind, type) and issubclass(kind, TokenMixer) and not getattr(kind, "__abstractmethods__", None)
)
OPTIONS: dict[str, dict[str, Any]] = {
    "ClusterAttention": {"group": 4, "cells": 2},
    "EstimatedAttention": {"tile": 2},
    "FactorizedAttention": {"window": 3},
    "FrequencyFilter": {"groups": 4},
    "Gated": {"groups": 2},
    "HeadSplit": {"by_entropy": True},
    "LocalScan": {"window": 2},
    "NeighborhoodAttention": {"kernel_size": 3},
    "PooledAttention": {"tile": 2},
    "RadialAttention": {"reach": 2},
    "RoutedAttention": {"tile": 2, "router": "gate", "rest": "linear"},
    "TileAttention": {"tile": 2},
    "VariedWindowAttention": {"window": 2},
    "WindowAttention": {"window": 2, "shifts": [0, 0.5]},
}
IMAGES_ALONE = ("DeltaConvBlock", "LargeKernelAttention", "LocalScan")
DENOISERS: dict[str, Callable[[], Any]] = {"unet": tiny.unet, "dit": tiny.dit, "sd3": sd35, "flux": flux, "wan": wan}
SIZES: dict[str, tuple[int, ...]] = {"dit": (16, 16), "wan": (3, 8, 12)}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "family"),
    few([(m, f) for m in MIXERS for f in DENOISERS], ("KernelAttention", "sd3"), ("Adapted", "flux")),
)
def test_a_student_of_any_mixer_runs(name: str, family: str) -> None:
    torch.manual_seed(0)
    denoiser, factory = DENOISERS[family]().eval(), partial(getattr(blocks, name), **OPTIONS.get(name, {}))
    size = SIZES.get(family, (16, 24))
    expected = run(denoiser, size)  # type: ignore[arg-type]
    if family == "wan" and name in IMAGES_ALONE:
        with pytest.raises(ValueError, match=f"{name} .*choose a mixer whose served_axes hold 3"):
            replace(denoiser, factory)
        return
    replace(denoiser, factory)
    finalize(denoiser)
    found = run(denoiser, size)  # type: ignore[arg-type]
    assert found.shape == expected.shape and found.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", few(MIXERS, "HeadSplit"))
def test_an_export_of_any_mixer_gives_what_the_student_gives(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = tiny.dit().eval()
    shells = replace(denoiser, partial(getattr(blocks, name), **OPTIONS.get(name, {})))
    for shell in shells.values():
        for tensor in shell.mixer.state_dict().values():
            tensor.copy_(tensor.flip(0) if tensor.dtype == torch.long else tensor + 0.1 * torch.randn_like(tensor))
    finalize(denoiser)
    model = standalone(denoiser, tmp_path).eval()
    torch.testing.assert_close(run(model, (12, 12)), run(denoiser, (12, 12)))
