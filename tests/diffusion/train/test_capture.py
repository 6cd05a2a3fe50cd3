"""What teachers saw and gave is noted at every site, in compiled denoisers too."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from blocks import DeltaConvBlock
from sparsight.diffusion.families.known import example_inputs, family_of
from sparsight.diffusion.surgery.replace import replace
from sparsight.diffusion.train.capture import capture_site
from tests import tiny


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_site_is_noted_once_a_pass(compiled: bool) -> None:
    denoiser = tiny.FAMILIES["dit"]()
    shells = replace(denoiser, partial(DeltaConvBlock, kernel_size=3))
    inputs = example_inputs(denoiser, batch=2)
    torch._dynamo.reset()
    if compiled:
        for module in denoiser.modules():
            if type(module).__name__ in family_of(denoiser).blocks:
                module.compile(backend="eager")
        with torch.no_grad():
            denoiser(**inputs)  # as in an earlier pass, when nobody was looking
    for shell in shells.values():
        with torch.no_grad(), capture_site(shell) as samples:
            denoiser(**inputs)
        assert len(samples) == 1 and samples[0].inputs.shape == samples[0].outputs.shape
