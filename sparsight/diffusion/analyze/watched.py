"""An attention that computes as it did, while others look on, and in whose place others may compute.

Shape legend: B batch, h heads, N tokens, C channels, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import CoreMixer, Grid, Layout, Site
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.core_site import CoreSite, class_of, twin
from sparsight.diffusion.surgery.place import put
from sparsight.diffusion.surgery.replace import restore, shells_of
from sparsight.diffusion.surgery.sites import find_sites, refuse_unsupported
from sparsight.diffusion.surgery.student import OnGrid, delivered_grid, install_grid_hooks


class Watching(CoreMixer):
    """What holds a core's place while it is watched; nobody calls it."""

    served_axes = (1, 2, 3)

    def flops(self, grid: Grid) -> int:
        """None of its own."""
        return 0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """Softmax attention of (B, h, N, d)."""
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


@dataclass(frozen=True)
class Core:
    """What went through a core: all (B, h, tokens, d).

    Attributes:
        q: Queries.
        k: Keys.
        v: Values.
        output: What the attention made of them.
        scale: Factor of the logits.
        layout: Where the image stands among the tokens.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    scale: float
    layout: Layout


@dataclass(frozen=True)
class Pass:
    """One forward pass of a site.

    Attributes:
        hidden: The image's tokens that entered (B, N, C), or all of a block with one stream.
        args: Whatever else was given, by position.
        kwargs: Whatever else was given, by name.
        core: What went through the core.
        output: What the attention returned.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    core: Core
    output: Any


class WatchedSite(CoreSite):
    """Mixed into an attention's own class.

    Attributes:
        plain: The attention as it was, of the same tensors.
        look_on: Called with every pass, if there is anything to call.
        stand_in: What computes in the attention's place, of the attention's signature; it gets the grid, too.
    """

    plain: Any = None
    look_on: Callable[[Pass], None] | None = None
    stand_in: Any = None
    _core: Core | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Map (B, N, C) to (B, N, C) as the attention does, or what stands in for it."""
        if self.stand_in is not None:
            return on_grid(self.stand_in, self)(hidden_states, *args, **kwargs)
        if self.look_on is None:
            return self.plain(hidden_states, *args, **kwargs)
        output = super().forward(hidden_states, *args, **kwargs)
        core, self._core = self._core, None
        assert core is not None, "CoreSite refuses a pass without a core"
        self.look_on(Pass(hidden_states, args, kwargs, core, output))
        return output

    def core(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, hidden_states: Tensor) -> Tensor:
        """Softmax attention of (B, h, tokens, d), which is remembered."""
        site = self.mixer.site
        if k.shape != q.shape:
            raise ValueError(f"{site.path} has keys of {tuple(k.shape)} for queries of {tuple(q.shape)}: not analysed")
        layout = site.layout(delivered_grid(self.grid, site.path), q.shape[2])
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        output = F.scaled_dot_product_attention(q, k, v, scale=scale)
        self._core = Core(q, k, v, output, scale, layout)
        return output


def on_grid(module: Any, like: OnGrid) -> Any:
    """A student, told the grid of a site."""
    if like.grid is not None:
        module.grid = like.grid
    return module


@contextmanager
def watched(denoiser: nn.Module) -> Iterator[dict[str, WatchedSite]]:
    """A denoiser whose self-attentions are watched, by path; afterwards it is as it was, shells included.

    Raises:
        ConfigurationError: A site cannot be watched, or there is none.
    """
    shells = shells_of(denoiser)
    for path, shell in shells.items():
        put(denoiser, path, shell.as_teacher())
    attentions: dict[str, Any] = {}
    try:
        sites = find_sites(denoiser)
        if not sites:
            raise ConfigurationError("the denoiser has no self-attention to analyse")
        for site in sites:
            attention = denoiser.get_submodule(site.path)
            _refuse(site, attention)
            attentions[site.path] = attention
        install_grid_hooks(denoiser, family_of(denoiser).stacks)
        there = {site.path: _watched(site, attentions[site.path]) for site in sites}
        for path, site_there in there.items():
            put(denoiser, path, cast(nn.Module, site_there))
        yield there
    finally:
        for path, attention in attentions.items():
            put(denoiser, path, attention)
        if not shells:
            restore(denoiser)  # takes the hooks away
        for path, shell in shells.items():
            put(denoiser, path, cast(nn.Module, shell))


def _refuse(site: Site, attention: Any) -> None:
    try:
        refuse_unsupported(site.path, attention, Watching(site), train_projections=False)
    except ValueError as error:
        raise ConfigurationError(str(error).replace("cannot be replaced", "cannot be analysed")) from error


def _watched(site: Site, attention: Any) -> WatchedSite:
    made: WatchedSite = twin(attention, class_of(WatchedSite, attention.__class__), {"mixer": Watching(site)})
    vars(made)["plain"] = attention  # no submodule: its tensors are the site's own
    return made
