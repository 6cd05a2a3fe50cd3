"""What every token mixer is told and must return: the grid, the site, and two small base classes.

Only torch is imported here, so that exported models can carry this file's text as it is.

Shape legend: B batch, N tokens (= H * W), C channels, h heads, d channels of a head (C = h * d).
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AXES = ("frames", "height", "width")
"""Names of a grid's axes; one with fewer has the last of them."""


@dataclass(frozen=True, init=False)
class Grid:
    """Sides, in tokens, of the image or video that a token sequence was flattened from, last axis fastest.

    ``Grid(4, 6)`` is ``Grid(height=4, width=6)``; video has ``Grid(frames, height, width)``, a line ``Grid(width)``.

    Raises:
        ValueError: There is no side, more than three, or one below 1; or an axis has another name.
    """

    sizes: tuple[int, ...]

    def __init__(self, *sizes: int, **named: int) -> None:
        if named:
            expected = AXES[-len(named) :]
            if sizes or named.keys() != set(expected):
                raise ValueError(f"a grid has sides without names, or {', '.join(expected)}; got {sizes} and {named}")
            sizes = tuple(named[name] for name in expected)
        if not 1 <= len(sizes) <= len(AXES):
            raise ValueError(f"a grid has one to {len(AXES)} axes, got {len(sizes)}")
        if any(size < 1 for size in sizes):
            raise ValueError(f"every side of a grid has at least one token, got {'x'.join(map(str, sizes))}")
        object.__setattr__(self, "sizes", sizes)

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        return math.prod(self.sizes)

    @property
    def height(self) -> int:
        """Rows of each image."""
        return self.sizes[-2] if len(self.sizes) > 1 else 1

    @property
    def width(self) -> int:
        """Columns."""
        return self.sizes[-1]

    @property
    def named(self) -> dict[str, int]:
        """Sides by the name of their axis, as records hold them."""
        return dict(zip(AXES[-len(self.sizes) :], self.sizes, strict=True))

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


@dataclass(frozen=True)
class Layout:
    """Where an image's tokens stand in an attention's sequence: behind ``before`` others, in front of ``after``."""

    grid: Grid
    before: int = 0
    after: int = 0

    @property
    def others(self) -> int:
        """Number of tokens that are not the image's."""
        return self.before + self.after

    def split(self, x: Tensor, dim: int = 2) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens before the image, its own, and those after it, of (B, h, tokens, d) or along another axis."""
        before, image, after = x.split([self.before, self.grid.tokens, self.after], dim)
        return before, image, after

    def image(self, x_BNC: Tensor) -> Tensor:
        """The image's own tokens among (B, tokens, C); without the others all are."""
        return x_BNC if x_BNC.shape[1] == self.grid.tokens else self.split(x_BNC, 1)[1]


@dataclass(frozen=True)
class Site:
    """Where a mixer stands: one self-attention of a denoiser.

    Args:
        path: Module path of the attention inside the denoiser, e.g. ``transformer_blocks.3.attn1``.
        channels: Width C of the hidden state that enters and leaves the site.
        heads: Number of attention heads h.
        head_dim: Channels d of each head.
        grid: Tokens at the size that the denoiser was made for (its config's ``sample_size``).
        text: Where tokens of text stand in the attention's sequence, of a *joint* site; ``None`` where there are none.
    """

    path: str
    channels: int
    heads: int
    head_dim: int
    grid: Grid
    text: Literal["before", "after"] | None = None

    def layout(self, grid: Grid, tokens: int) -> Layout:
        """Layout of a sequence of so many tokens, in which the image's fill the grid.

        Raises:
            ValueError: The image's alone are more, or there are others, and the site is not joint.
        """
        others = tokens - grid.tokens
        if others < 0 or (others and self.text is None):
            raise ValueError(
                f"{self.path} got {tokens} tokens for a grid of {grid}; was it recomputed after a forward at another "
                "size?"
            )
        return Layout(grid, before=others) if self.text == "before" else Layout(grid, after=others)


@dataclass(frozen=True)
class AttentionWeights:
    """A teacher attention's projections as plain tensors; biases are ``None`` where it has none.

    ``query``, ``key`` and ``value`` are (h*d, C), ``out`` is (C, h*d); ``scale`` multiplies the logits. Of a joint site
    ``out`` is the identity, since the attention's last projection stays behind the mixer. Some attentions
    apply ``query_norm`` and ``key_norm`` to (B, h, N, d) before they attend.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    out_bias: Tensor | None
    scale: float
    query_norm: Callable[[Tensor], Tensor] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None

    def projected(
        self, hidden_BNC: Tensor, heads: int, positions: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as they attend, each (B, h, N, d).

        Args:
            hidden_BNC: What enters the attention.
            heads: Number of heads h.
            positions: Of its tokens, see :class:`SiteSamples`.
        """
        pairs = ((self.query, self.query_bias), (self.key, self.key_bias), (self.value, self.value_bias))
        q, k, v = (F.linear(hidden_BNC, w, b).unflatten(-1, (heads, -1)).transpose(1, 2) for w, b in pairs)
        q = q if self.query_norm is None else self.query_norm(q)
        k = k if self.key_norm is None else self.key_norm(k)
        return (q, k, v) if positions is None else (turned(q, *positions), turned(k, *positions), v)


def turned(x_BhNd: Tensor, cos_Nd: Tensor, sin_Nd: Tensor) -> Tensor:
    """Queries or keys with every pair of neighbouring channels turned by an angle (rotary embedding, 2104.09864)."""
    crossed = torch.stack([-x_BhNd[..., 1::2], x_BhNd[..., 0::2]], -1).flatten(-2)
    return x_BhNd * cos_Nd.to(x_BhNd) + crossed * sin_Nd.to(x_BhNd)


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on for tensors such as this one; it leaves float64 alone, and knows no meta device.

    ``torch.amp.is_autocast_available`` is not asked: compiled code of torch 2.11 breaks at it.
    """
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64


@dataclass(frozen=True)
class SiteSamples:
    """What a teacher attention saw and returned on one batch: both (B, N, C), on one grid.

    Of a joint site these are the image's tokens, and outputs are what they take from each other, in front of the
    attention's last projection; ``masses`` (B, N, h) is then the log-sum-exp of each query's logits over them.
    ``positions`` are cosines and sines (N, d) by which queries and keys are turned, where they are.
    """

    inputs: Tensor
    outputs: Tensor
    grid: Grid
    masses: Tensor | None = None
    positions: tuple[Tensor, Tensor] | None = None


class TokenMixer(nn.Module, ABC):
    """Base of everything that can stand in for a self-attention.

    Subclass ``CoreMixer`` or ``FeatureMixer``, take a ``Site`` as the only positional argument and
    plain-data keyword options after it, and keep each option in an attribute of its name: they are written to YAML,
    checkpoints and exports. The file of a mixer may import torch, ``blocks`` and plain files beside it, which travel
    inside an exported model with it.

    Attributes:
        served_axes: How many axes a grid may have: video has three.
        backends: What it can be computed with, each with what that needs: ``torch``, and others where an option
            ``backend`` names the one that is wanted.
        backend: The one that is wanted.
    """

    served_axes: Collection[int] = (1, 2)
    backends: ClassVar[dict[str, str]] = {"torch": ""}
    backend: str = "torch"

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options that make an equal mixer for this site.

        Raises:
            TypeError: One is kept in no attribute of its name.
        """
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        lost = next((name for name in names if not hasattr(self, name)), None)
        if lost is not None:  # an AttributeError of a property would be told as one of the property itself
            raise TypeError(f"{type(self).__name__} does not keep its option {lost}: write self.{lost} = {lost}")
        return {name: getattr(self, name) for name in names}

    @property
    def is_softmax(self) -> bool:
        """Whether ``SoftmaxMixer.partial`` may be called."""
        return isinstance(self, SoftmaxMixer)

    @abstractmethod
    def flops(self, grid: Grid) -> int:
        """FLOPs (2 per multiply-accumulate) of one image on ``grid``, without the projections of a core mixer."""

    @classmethod
    def exact_limit(cls, site: Site, grid: Grid) -> dict[str, object] | None:
        """Options with which the mixer equals the teacher's attention on ``grid``, or ``None`` if there are none."""
        return None

    def padded(self, grid: Grid) -> Grid:
        """The grid that it computes on, each side at a multiple of what it cuts it into (default: the grid itself).

        ``flops`` counts what is padded, and reports name it.
        """
        return grid

    def missing_backend(self, name: str, grid: Grid, like: Tensor) -> str:
        """Why one of ``backends`` cannot compute inputs like this one on a grid, here and now; empty if it can."""
        return ""

    def checked_backend(self, name: str) -> str:
        """A name among ``backends``.

        Raises:
            ValueError: It is not.
        """
        if name not in self.backends:
            raise ValueError(f"backend of {type(self).__name__} is one of {', '.join(self.backends)}; got {name!r}")
        return name

    def serving_backend(self, grid: Grid, like: Tensor, **more: Any) -> str:
        """The backend that computes such inputs: the one that is wanted, or ``torch``, with one warning of why.

        Args:
            grid: Their grid.
            like: One of them.
            more: What else a mixer's ``missing_backend`` is told.
        """
        if self.backend == "torch":
            return "torch"
        reason = self.missing_backend(self.backend, grid, like, **more)
        if reason and not torch.compiler.is_compiling():
            _warn_once(f"{type(self).__name__} is computed with torch, not with {self.backend}: {reason}")
        return "torch" if reason else self.backend

    def auxiliary_loss(self) -> Tensor | None:
        """What training adds to the error of this mixer's site: a scalar, or ``None`` if there is nothing (default).

        It is asked for after every student pass, in both stages, and weighs as the site's error does in the layer-wise
        stage. A mixer made of mixers answers for itself alone.
        """
        return None

    def is_attention(self, grid: Grid) -> bool:
        """Whether it is full attention on this grid, whatever comes in; a site does without it where nothing learns."""
        return False

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Set the parameters from the teacher's weights and from what it did on real batches (default: nothing)."""


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


class CoreMixer(TokenMixer):
    """A mixer of queries, keys and values; the site's projections are the teacher's."""

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix tokens: ``q``, ``k``, ``v`` are (B, h, N, d), and so is the result; ``scale`` is the teacher's."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """As ``mix``; sites call the module, so that whatever offloads, shards or casts modules sees it."""
        return self.mix(q, k, v, grid, scale)


class SoftmaxMixer(CoreMixer):
    """A core mixer whose weights are one softmax over keys that it chooses or makes: it can be merged with others.

    Attributes:
        left_out: A mixer as plain data, whose keys this one leaves to it; ``None`` for nothing.
    """

    left_out: dict[str, Any] | None = None

    @property
    def has_product_logits(self) -> bool:
        """Whether the logarithm of a weight is ``scale`` times query times key, and what no query changes."""
        return True

    def forward(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float, *, mass: bool = False) -> Any:
        """As ``mix``, or with ``mass`` as ``partial``: what is made of mixers calls them as modules, too."""
        return self.partial(q, k, v, grid, scale) if mass else self.mix(q, k, v, grid, scale)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Mix (B, h, N, d) tensors: as ``partial``, unless the mass costs more."""
        return self.partial(q, k, v, grid, scale)[0]

    @abstractmethod
    def partial(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> tuple[Tensor, Tensor]:
        """Mix as ``mix`` does, and tell the mass of the keys.

        Returns:
            Output (B, h, N, d), and the log-sum-exp of each query's logits (B, h, N, 1) in fp32: minus infinity where a
            query sees no key. See ``blocks.ops.partial.merge``.
        """

    def reference(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> tuple[Tensor, Tensor]:
        """The slow and obvious twin of ``partial``, which tests compare it with; itself where it is obvious."""
        return self.partial(q, k, v, grid, scale)


class FeatureMixer(TokenMixer):
    """A mixer of the normalised hidden state itself; it uses none of the teacher's projections.

    At a joint site it gives what image tokens take from each other, in front of the attention's last projection, and
    the projections stay for what they take from the text, and the text from them.

    Attributes:
        autocasts: Under autocast, it takes a hidden state of any precision and brings it to autocast's own at once.
            Others get it in the precision of their weights.
    """

    autocasts: bool = False

    @abstractmethod
    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C), in the dtype of the input."""
