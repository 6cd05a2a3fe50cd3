"""The residual stream after a site is what the block's own arithmetic says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.sites import find_sites
from sparsight.diffusion.train.residual import ResidualTaps
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stream_is_block_input_plus_gated_attention(family: str) -> None:
    denoiser = tiny.FAMILIES[family]().eval()
    paths = [site.path for site in find_sites(denoiser)]
    taps = ResidualTaps(denoiser, paths)
    expected: dict[str, torch.Tensor] = {}

    def watch(path: str) -> None:
        block: Any = denoiser.get_submodule(path.rpartition(".")[0])
        seen: dict[str, Any] = {"gate": 1.0}

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["input"] = args[0]
            if block.norm_type == "ada_norm_single":
                table = block.scale_shift_table[None] + kwargs["timestep"].reshape(len(args[0]), 6, -1)
                seen["gate"] = table[:, 2:3]

        def after_norm(module: Any, args: tuple[Any, ...], output: Any) -> None:
            if block.norm_type == "ada_norm_zero":
                seen["gate"] = output[1][:, None]

        def after_attention(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
            expected[path] = seen["input"] + seen["gate"] * output

        block.register_forward_pre_hook(before, with_kwargs=True)
        block.norm1.register_forward_hook(after_norm)
        block.attn1.register_forward_hook(after_attention)

    for path in paths:
        watch(path)
    with taps.listening() as streams:
        denoiser(**example_inputs(denoiser, batch=2))
    assert list(streams) and set(streams) == set(paths)
    for path in paths:
        torch.testing.assert_close(streams[path], expected[path])
    denoiser(**example_inputs(denoiser, batch=2))
    assert torch.equal(streams[paths[0]], expected[paths[0]]) is False, "nothing is noted outside the context"
