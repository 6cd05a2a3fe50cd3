"""Mixers on random inputs: of both kinds alike, in their slow form, and beside the attention that they stand for.

Shape legend: B batch, N tokens, C channels, h heads, d channels of a head (C = h * d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import AttentionWeights, CoreMixer, FeatureMixer, Grid, Site, SiteSamples, TokenMixer

SITE = Site("transformer_blocks.0.attn1", channels=16, heads=2, head_dim=8, grid=Grid(8, 8))


def apply_mixer(mixer: TokenMixer, inputs: Sequence[Tensor], grid: Grid) -> Tensor:
    """Run a mixer of either kind; ``inputs`` is what ``random_inputs`` returned for it."""
    if isinstance(mixer, CoreMixer):
        q, k, v = inputs
        return mixer.mix(q, k, v, grid, mixer.site.head_dim**-0.5)
    assert isinstance(mixer, FeatureMixer)
    return mixer(inputs[0], grid)


@runtime_checkable
class Referenced(Protocol):
    """A mixer with a slow, obvious form of itself."""

    def reference(self, *arguments: Any) -> Any:
        """What ``mix`` (of a softmax mixer ``partial``, of a feature mixer ``forward``) makes of its arguments."""
        ...


def apply_reference(mixer: Referenced, inputs: Sequence[Tensor], grid: Grid) -> Tensor:
    """Run the slow form of a mixer of either kind; ``inputs`` is what ``random_inputs`` returned for it."""
    scale = (mixer.site.head_dim**-0.5,) if isinstance(mixer, CoreMixer) else ()
    expected = mixer.reference(*inputs, grid, *scale)
    output: Tensor = expected[0] if isinstance(expected, tuple) else expected  # a softmax tells its keys' mass, too
    return output


def random_inputs(mixer: TokenMixer, grid: Grid, *, batch: int = 2) -> list[Tensor]:
    """Normal inputs of a mixer: q, k, v of shape (B, h, N, d) for a core mixer, else one hidden state (B, N, C)."""
    site = mixer.site
    if isinstance(mixer, CoreMixer):
        return [torch.randn(batch, site.heads, grid.tokens, site.head_dim) for _ in range(3)]
    return [torch.randn(batch, grid.tokens, site.channels)]


def random_teacher(site: Site, grid: Grid, *, batch: int = 4) -> tuple[AttentionWeights, SiteSamples]:
    """A random attention whose tokens prefer their like, on smooth random images, and what it gives."""
    channels, inner = site.channels, site.heads * site.head_dim
    query, value = (torch.randn(inner, channels) / channels**0.5 for _ in range(2))
    key = 1.5 * query + 0.5 * torch.randn(inner, channels) / channels**0.5
    out = torch.randn(channels, inner) / inner**0.5
    biases = (torch.zeros(inner), torch.zeros(inner), 0.1 * torch.randn(inner), 0.1 * torch.randn(channels))
    weights = AttentionWeights(query, key, value, out, *biases, scale=site.head_dim**-0.5)
    coarse = torch.randn(batch, channels, max(1, grid.height // 2), max(1, grid.width // 2))
    image_BCHW = F.interpolate(coarse, (grid.height, grid.width), mode="bilinear")
    image_BCHW = image_BCHW + 0.3 * torch.randn_like(image_BCHW)
    inputs_BNC = F.layer_norm(image_BCHW.flatten(2).transpose(1, 2), (channels,))
    return weights, SiteSamples(inputs_BNC, attend(weights, inputs_BNC, site.heads), grid)


def at_exact_limit(
    mixer: TokenMixer, grid: Grid, *, dtype: torch.dtype = torch.float32
) -> tuple[TokenMixer, list[Tensor], Tensor] | None:
    """A mixer at the limit where it declares to be attention; nothing if it declares none on this grid.

    Args:
        mixer: Of the class in question; it stays as it is.
        grid: Of the inputs.
        dtype: What the inputs are rounded to, before the attention gets them in float64.

    Returns:
        The mixer at its limit in float32, its inputs in ``dtype``, and what the attention makes of them.
    """
    options = type(mixer).exact_limit(mixer.site, grid)
    if options is None:
        return None
    exact = type(mixer)(mixer.site, **options)
    if isinstance(exact, CoreMixer):
        inputs = [part.to(dtype) for part in random_inputs(exact, grid)]
        q, k, v = (part.double() for part in inputs)
        return exact, inputs, F.scaled_dot_product_attention(q, k, v, scale=mixer.site.head_dim**-0.5)
    weights, samples = random_teacher(mixer.site, grid)
    exact.init_from_teacher(weights, [samples])
    return exact, [samples.inputs.to(dtype)], samples.outputs


def attend(weights: AttentionWeights, hidden_BNC: Tensor, heads: int) -> Tensor:
    """The teacher itself: softmax self-attention with the given projections."""
    q, k, v = weights.projected(hidden_BNC, heads)
    mixed_BhNd = F.scaled_dot_product_attention(q, k, v, scale=weights.scale)
    return F.linear(mixed_BhNd.transpose(1, 2).flatten(2), weights.out, weights.out_bias)


def relative_l2(value: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over the L2 norm of what was expected."""
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp(min=1e-12))
