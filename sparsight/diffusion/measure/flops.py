"""FLOPs of denoisers and of their sites, by formula and by torch's own counter on the meta device.

A multiply-accumulate counts as 2 FLOPs. Counting runs on the meta device, where tensors have shapes but no memory: it
takes less than a second at any size, and sees every product, whichever fused kernel a real device would choose (older
versions of torch count nothing for the fused attention of CPUs).

Shape legend: N tokens of a site, C its channels, h heads, d channels of a head.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blocks.base import Grid, Site, TokenMixer
from sparsight.common.training.sharding import own_class
from sparsight.diffusion.families.known import example_inputs, plain_class
from sparsight.diffusion.surgery.joint import is_core
from sparsight.diffusion.surgery.replace import finalize, replace
from sparsight.diffusion.surgery.sites import SiteSelection, meta_twin, students

COUNTED = (
    "FLOPs are 2 per multiply-accumulate, for one forward pass: matrix products (projections and both attention "
    "products included) and convolutions. Not counted: norms, softmax, activations, gates, biases and other "
    "element-wise work, pooling, interpolation."
)


def attention_flops(site: Site, grid: Grid) -> int:
    """FLOPs of a softmax self-attention on one image: 8 N C (h d) for its projections and 4 N^2 (h d) for its core.

    At a joint site these are the image's alone: what its tokens take from the text, and the text, stays as it is.
    """
    return projection_flops(site, grid) + 4 * grid.tokens**2 * site.heads * site.head_dim


def projection_flops(site: Site, grid: Grid) -> int:
    """FLOPs of the query, key, value and output projections on one image: 8 N C (h d)."""
    return 8 * grid.tokens * site.channels * site.heads * site.head_dim


def mixer_flops(mixer: TokenMixer, grid: Grid) -> int:
    """FLOPs of all that stands at a site in the attention's place, on one image, as ``attention_flops``.

    Core mixers keep its projections, and so do all mixers at joint sites.
    """
    kept = projection_flops(mixer.site, grid) if is_core(mixer) else 0
    return kept + mixer.flops(grid)


_counted: dict[tuple[object, ...], int] = {}  # a pass takes seconds at real size, and a run asks several times


def count_flops(denoiser: Any, *, size: tuple[int, ...] | None = None, batch: int = 1) -> int:
    """FLOPs of one forward pass, counted by torch: see ``COUNTED``.

    Where mixers stand in the denoiser, they are counted, not the teachers beside them; the untouched denoiser's number
    is ``count_flops(meta_twin(denoiser))``. Text has 77 tokens for UNets, 154 for SD3, 300
    for PixArt and 512 for FLUX. What settles the number is counted once: class, configuration, mixers with their
    options, size and batch.

    Args:
        denoiser: Of a family that is served, on any device.
        size: Sides in model space; those that the denoiser was made for if not given.
        batch: Samples.
    """
    mixers = {path: student.mixer for path, student in students(denoiser).items()}
    kinds = tuple((path, own_class(mixer), _as_key(mixer.options)) for path, mixer in mixers.items())
    key = (plain_class(denoiser), _as_key(dict(denoiser.config)), kinds, size, batch)
    if key not in _counted:
        _counted[key] = _count(meta_student(denoiser), size, batch).get_total_flops()
    return _counted[key]


def _as_key(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=str)


def count_site_flops(denoiser: nn.Module, *, size: tuple[int, ...] | None = None, batch: int = 1) -> dict[str, int]:
    """FLOPs that torch counts in every module, by path; as ``count_flops``."""
    counts = _count(meta_student(denoiser), size, batch).get_flop_counts()
    return {name.partition(".")[2]: sum(operators.values()) for name, operators in counts.items()}


def meta_student(denoiser: nn.Module) -> Any:
    """The denoiser of the same configuration and with the same mixers, teachers gone, without memory."""
    twin = meta_twin(denoiser)
    mixers = {path: student.mixer for path, student in students(denoiser).items()}
    if mixers:
        with torch.device("meta"):
            replace(twin, lambda site: _twin_of(mixers[site.path]), SiteSelection(include=list(mixers)))
        finalize(twin)
    return twin


def _twin_of(mixer: TokenMixer) -> TokenMixer:
    return own_class(mixer)(mixer.site, **mixer.options)


def _count(twin: nn.Module, size: tuple[int, ...] | None, batch: int) -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(**example_inputs(twin, size=size, batch=batch, device="meta"))
    return counter
