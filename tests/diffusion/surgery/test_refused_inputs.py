"""What no mixer can stand for is refused by the name of its site: masked image and text, keys that heads share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_wan import WanAttention

from blocks import NeighborhoodAttention
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.replace import replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from tests import tiny
from tests.tiny_flux import flux
from tests.tiny_sd3 import sd35
from tests.tiny_wan import wan

NEAR = partial(NeighborhoodAttention, kernel_size=3)


@pytest.mark.parametrize(("made", "size"), [(flux, (8, 12)), (sd35, (16, 24))], ids=["flux", "sd35"])
def test_a_mask_over_text_is_the_teachers_alone(made: Callable[[], Any], size: tuple[int, int]) -> None:
    """None of the pipelines hands one over; whoever does learns which site cannot take it."""
    denoiser = made()
    shells = replace(denoiser, NEAR)
    inputs = example_inputs(denoiser, batch=2, size=size) | {"return_dict": False}
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    masked = inputs | {"joint_attention_kwargs": {"attention_mask": mask}}
    with torch.no_grad():
        set_mode(shells.values(), Mode.STUDENT)
        denoiser(**inputs)
        with pytest.raises(
            ValueError, match=r"transformer_blocks\.0\.attn replaces a self-attention: it takes no mask"
        ):
            denoiser(**masked)


GROUPED: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "pixart": (
        lambda: tiny.pixart(),
        "transformer_blocks.0.attn1",
        lambda: Attention(query_dim=32, heads=4, dim_head=8, kv_heads=2, bias=True),
    ),
    "sd35": (
        sd35,
        "transformer_blocks.1.attn",
        lambda: Attention(query_dim=32, heads=2, dim_head=16, kv_heads=1, added_kv_proj_dim=32, bias=True),
    ),
    "wan": (wan, "blocks.1.attn1", lambda: WanAttention(dim=32, heads=2, dim_head=16, cross_attention_dim_head=8)),
}


@pytest.mark.parametrize("name", GROUPED)
def test_keys_that_heads_share_are_refused(name: str) -> None:
    made, path, attention = GROUPED[name]
    denoiser = made()
    denoiser.set_submodule(path, attention())
    with pytest.raises(ValueError, match=rf"{path} cannot be replaced: it has fewer key than query heads"):
        replace(denoiser, NEAR)


def test_keys_that_come_to_a_core_in_fewer_heads_are_refused() -> None:
    shell = next(iter(replace(wan(), NEAR).values()))
    q, k = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn1 has 2 heads of keys for 4 of queries"):
        shell.core(q, k, k, None, torch.zeros(1, 6, 32))
