"""Small learned parts around a core mixer: temperature, entropy at other sizes, pooling or a convolution, a gate.

Zhou et al., "Length-Induced Embedding Collapse in Transformer-based Models" (TempScale), arXiv 2410.24200, lower the
temperature where attention smooths too much; Jin et al., "Training-free Diffusion Model Adaptation for Variable-Sized
Text-to-Image Synthesis", arXiv 2306.08645, scale logits by the log of the number of tokens; Guo et al., "Robustifying
Token Attention for Vision Transformers", arXiv 2303.11126, pool tokens at scales that each token chooses; Dong et al.,
"CSWin Transformer", arXiv 2107.00652, add a depthwise convolution of the values; Han et al., "Bridging the Divide"
(InLine), arXiv 2412.06590, predict its kernels from each image; Fan et al., "Breaking the Low-Rank Dilemma of Linear
Attention", arXiv 2411.07635, end with a gate, which here is a linear map of the queries, since a core mixer sees no
hidden state.

Shape legend: B batch, h heads, N tokens, d channels of a head, K side of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, Grid, Site, SiteSamples, SoftmaxMixer, TokenMixer
from blocks.merge import Merge
from blocks.ops.fit import fitted
from blocks.ops.neighbours import NeighbourPooling
from blocks.ops.partial import Partial
from blocks.parts import made_parts, plain_part
from blocks.softmax_attention import SoftmaxAttention


class Adapted(SoftmaxMixer):
    """A core mixer with parts around it that all start without effect, and are fitted to the teacher where it is there.

    Args:
        site: Where the mixer stands.
        part: The core mixer; ``Merge`` as it is by itself if not given.
        temperature: Whether a learned factor per head multiplies the logits.
        trained_tokens: Tokens of the grid that the teacher was trained on: on others logits are multiplied by the
            log of their number over the log of this one, which keeps the entropy.
        value_kernel: Side of a depthwise convolution of the values that is added, odd; 0 for none.
        predicted: Predict the kernels from the mean value of each image instead.
        gated: Multiply the output by one plus a learned linear map of the query.
        pooled: Mix every key and value with the means of neighbours at such distances, by weights that each key
            chooses; 1, 2 and 3 as published, none to leave it out.

    Raises:
        ValueError: A number is out of range, or the part is no core mixer.
    """

    def __init__(
        self,
        site: Site,
        *,
        part: Callable[[Site], TokenMixer] | None = None,
        temperature: bool = True,
        trained_tokens: int | None = None,
        value_kernel: int = 0,
        predicted: bool = False,
        gated: bool = False,
        pooled: Sequence[int] = (),
    ) -> None:
        super().__init__(site)
        self.mixers: Any = made_parts("Adapted", [Merge if part is None else part], [site])
        self.part: Any = plain_part(self.mixers[0])
        if trained_tokens is not None and trained_tokens < 2:
            raise ValueError(f"trained_tokens of Adapted is {trained_tokens!r}: give 2 or more, or none")
        if value_kernel < 0 or (value_kernel and value_kernel % 2 == 0):
            raise ValueError(f"value_kernel of Adapted is {value_kernel!r}: give an odd number of tokens, or 0")
        if predicted and not value_kernel:
            raise ValueError("predicted of Adapted is about the kernels of value_kernel: give its side")
        self.pooled = tuple(pooled)
        if any(not isinstance(each, int) or each < 1 for each in self.pooled):
            raise ValueError(f"pooled of Adapted is {list(pooled)}: give distances in tokens of at least 1, or none")
        self.temperature, self.trained_tokens = temperature, trained_tokens
        self.value_kernel, self.predicted, self.gated = value_kernel, predicted, gated
        heads, dim, taps = site.heads, site.head_dim, value_kernel ** len(site.grid.sizes)
        self.log_factor = nn.Parameter(torch.zeros(heads)) if temperature else None
        self.kernels = nn.Parameter(torch.zeros(heads * dim, taps)) if value_kernel and not predicted else None
        widths = (1, taps) if predicted else ()
        self.predictor = nn.ModuleList(nn.Conv1d(heads * dim, n * heads * dim, 1, groups=heads) for n in widths)
        for parameter in self.predictor[-1].parameters() if predicted else ():
            nn.init.zeros_(parameter)
        self.gate = nn.Parameter(torch.zeros(heads, dim, dim)) if gated else None
        pooling = NeighbourPooling(heads=heads, head_dim=dim, dilations=self.pooled) if self.pooled else None
        self.pooling: NeighbourPooling | None = pooling

    @property
    def served_axes(self) -> Collection[int]:  # type: ignore[override]
        """Those of the part; kernels are made for those of the site."""
        axes: Collection[int] = self.mixers[0].served_axes
        return set(axes) & {len(self.site.grid.sizes)} if self.value_kernel else axes

    @property
    def is_softmax(self) -> bool:
        """Whether the part's weights are one softmax: what is added to its output leaves its mass alone."""
        return bool(self.mixers[0].is_softmax)

    @property
    def has_product_logits(self) -> bool:
        """Whether those of the part are, and are not scaled."""
        return self.trained_tokens is None and self.mixers[0].has_product_logits

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object]:
        """Attention, and nothing around it."""
        return {"part": plain_part(SoftmaxAttention(site)), "temperature": False}

    def padded(self, grid: Grid) -> Grid:
        """That of the part; a convolution takes the grid as it is."""
        padded: Grid = self.mixers[0].padded(grid)
        return grid if self.value_kernel or self.gated or self.pooled else padded

    def flops(self, grid: Grid) -> int:
        """Those of the part, 2 N K^2 h d of the convolution, 2 N h d^2 of the gate, 4 N h d S of S poolings."""
        heads, dim, taps = self.site.heads, self.site.head_dim, self.value_kernel ** len(self.site.grid.sizes)
        around = 2 * grid.tokens * heads * dim * (taps if self.value_kernel else 0)
        around += 2 * heads * dim**2 * (1 + taps) if self.predicted else 0
        around += 2 * grid.tokens * heads * dim**2 if self.gated else 0
        around += 4 * grid.tokens * heads * dim * (1 + len(self.pooled)) if self.pooled else 0
        return int(self.mixers[0].flops(grid)) + around

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors."""
        keys, values = self._with_neighbours(k, v, grid)
        return self._around(self.mixers[0](self._scaled(q, grid), keys, values, grid, scale), q, v, grid)

    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Partial:
        """Mix, and tell the log-sum-exp of the part.

        Raises:
            ValueError: The part cannot tell.
        """
        if not self.is_softmax:
            raise ValueError(f"part of Adapted is {type(self.mixers[0]).__name__}, which has no partial")
        keys, values = self._with_neighbours(k, v, grid)
        output, lse = self.mixers[0](self._scaled(q, grid), keys, values, grid, scale, mass=True)
        return self._around(output, q, v, grid), lse

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Any:
        """As ``partial`` around the reference of the part, or ``mix`` where it cannot tell."""
        keys, values = self._with_neighbours(k, v, grid)
        output = self.mixers[0].reference(self._scaled(q, grid), keys, values, grid, scale)
        output, *lse = output if isinstance(output, tuple) else (output,)
        output = self._around(output, q, v, grid)
        return (output, *lse) if lse else output

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Let the part start, and then fit all of it to the core's outputs on real batches."""
        self.mixers[0].init_from_teacher(weights, samples)
        fitted(self, weights, samples)

    def _scaled(self, q: Tensor, grid: Grid) -> Tensor:
        """Queries, scaled as their logits are to be."""
        if self.trained_tokens is not None:
            tokens = q.new_full((), grid.tokens, dtype=torch.float32)  # as a number, each size would be a graph
            q = q * (tokens.log() / math.log(self.trained_tokens)).to(q.dtype)
        return q if self.log_factor is None else q * self.log_factor.float().exp()[:, None, None].to(q.dtype)

    def _with_neighbours(self, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        return (k, v) if self.pooling is None else (self.pooling(k, k, grid), self.pooling(v, k, grid))

    def _around(self, output: Tensor, q: Tensor, v: Tensor, grid: Grid) -> Tensor:
        if self.value_kernel:
            output = output + self._convolved(v, grid)
        return output if self.gate is None else output * (1 + q @ self.gate.to(q.dtype))

    def _convolved(self, v: Tensor, grid: Grid) -> Tensor:
        batch, axes = len(v), len(grid.sizes)
        if axes != len(self.site.grid.sizes):
            raise ValueError(
                f"Adapted of {self.site.path} has kernels of {len(self.site.grid.sizes)} axes, and a grid of {axes} "
                "came: use value_kernel 0 there"
            )
        v_BNC = v.transpose(1, 2).flatten(2)
        kernels, images = self.kernels, v_BNC.unflatten(1, grid.sizes).movedim(-1, 1)  # channels-last, one image too
        if self.predicted:
            first, last = self.predictor
            kernels = last(F.gelu(first(v_BNC.mean(1)[..., None]))).reshape(batch * v_BNC.shape[2], -1)
            images = images.reshape(1, -1, *grid.sizes)
        assert kernels is not None
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        side = (self.value_kernel,) * axes
        output = convolve(
            images,
            kernels.to(v.dtype).unflatten(-1, side)[:, None],
            padding=self.value_kernel // 2,
            groups=images.shape[1],
        )
        return output.reshape(batch, self.site.heads, -1, grid.tokens).transpose(2, 3)
