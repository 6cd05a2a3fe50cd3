"""Finding the self-attentions of a denoiser and choosing among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from blocks.base import FeatureMixer, Grid, Site, TokenMixer
from sparsight.common.errors import ConfigurationError, need_kind, need_texts, need_whole, require
from sparsight.diffusion.families.grids import grid_from
from sparsight.diffusion.families.known import example_inputs, facts_of, family_of, plain_class
from sparsight.diffusion.surgery.core_site import NO_CORE, CoreSite
from sparsight.diffusion.surgery.joint import is_core
from sparsight.diffusion.surgery.rehearsal import rehearsed
from sparsight.diffusion.surgery.shell import Shell
from sparsight.diffusion.surgery.student import StudentAttention, transformer_stacks

DENOISER = "the denoiser of a pipeline, its unet or transformer"


@dataclass(frozen=True)
class SiteSelection:
    """Which self-attentions to replace.

    Args:
        include: Patterns of module paths (``fnmatch``), or whole paths.
        exclude: Patterns of what to leave out of that.
        min_tokens: Leave out sites with fewer tokens, at the denoiser's own size.
        max_tokens: Leave out sites with more tokens.
        predicate: A function of the site, for whatever patterns cannot say.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = field(default_factory=tuple)
    min_tokens: int = 0
    max_tokens: int | None = None
    predicate: Callable[[Site], bool] | None = None

    def __post_init__(self) -> None:
        """Refuse what is of another kind, or out of range."""
        need_texts("include", self.include)
        need_texts("exclude", self.exclude)
        need_whole(min_tokens=self.min_tokens)
        require(self.min_tokens >= 0, "min_tokens", self.min_tokens, "0 or more")
        if self.max_tokens is not None:
            need_whole(max_tokens=self.max_tokens)
            require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more, or none")
        if self.predicate is not None and not callable(self.predicate):
            raise ConfigurationError(f"predicate is {self.predicate!r}: give a function of the site")

    def choose(self, sites: Sequence[Site]) -> list[Site]:
        """The chosen sites, in the order of the denoiser.

        Raises:
            ValueError: A pattern matches no site, or no site is left.
        """
        paths = [site.path for site in sites]
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatch(path, pattern) for path in paths):
                raise ValueError(f"no self-attention matches {pattern!r}; there are: {', '.join(paths)}")
        chosen = [site for site in sites if self._wants(site)]
        if not chosen:
            raise ValueError(f"{self} leaves no self-attention to replace; there are: {', '.join(paths)}")
        return chosen

    def _wants(self, site: Site) -> bool:
        return (
            any(fnmatch(site.path, pattern) for pattern in self.include)
            and not any(fnmatch(site.path, pattern) for pattern in self.exclude)
            and self.min_tokens <= site.grid.tokens
            and (self.max_tokens is None or site.grid.tokens <= self.max_tokens)
            and (self.predicate is None or self.predicate(site))
        )


def find_sites(denoiser: nn.Module) -> list[Site]:
    """Every self-attention inside a transformer block, in the order of the modules.

    A site is an attention in which image tokens mix with each other: alone, or, at a joint site, with text among them.

    Raises:
        ValueError: The denoiser's class is not supported, or it is a pipeline.
    """
    need_kind("denoiser", denoiser, nn.Module, DENOISER)
    grids, text = probe_grids(denoiser), family_of(denoiser).text
    found = [(path, facts_of(attention)) for path, attention in self_attentions(denoiser)]
    return [
        Site(
            path=path,
            channels=facts.channels,
            heads=facts.heads,
            head_dim=facts.head_dim,
            grid=grids[path],
            text=text.get(path.rpartition(".")[2]),
        )
        for path, facts in found
        if facts is not None
    ]


def self_attentions(denoiser: nn.Module) -> list[tuple[str, Any]]:
    """Paths and attention modules of all sites; where a site is replaced already, the teacher that stood there."""
    found = []
    family = family_of(denoiser)
    for block_path, block in denoiser.named_modules():
        for name in family.self_attentions(block) if type(block).__name__ in family.blocks else ():
            attention = block.get_submodule(name)
            if isinstance(attention, Shell):
                attention = attention.attention
            elif isinstance(attention, CoreSite):
                continue
            if facts_of(attention) is not None:
                found.append((f"{block_path}.{name}", attention))
    return found


def refuse_unsupported(path: str, attention: Any, mixer: TokenMixer, *, train_projections: bool) -> None:
    """Raise a ValueError that names what makes a self-attention more than attention among its own tokens.

    Fused projections stand around the core, and stay where that alone is replaced; so do projections of the text at a
    joint site.
    An attention that computes its core in another way than by torch's function is told here, where that can be seen.
    """
    facts = facts_of(attention)
    assert facts is not None, "a site"
    around = is_core(mixer)
    present = list(facts.obstacles)
    axes = len(mixer.site.grid.sizes)
    if axes not in mixer.served_axes:
        served = " or ".join(map(str, sorted(mixer.served_axes)))
        raise ValueError(
            f"{path} has tokens on {axes} axes ({', '.join(mixer.site.grid.named)}), and {type(mixer).__name__} serves "
            f"{served or 'none that all of its parts serve'}: choose a mixer whose served_axes hold {axes}"
        )
    if mixer.site.text is None and facts.text_channels is not None:
        present.append("add_k_proj")
    called = rehearsed(attention, text_channels=facts.text_channels if mixer.site.text else None)
    fused = attention.fused_projections and (called is None or bool(called.layers & {"to_qkv.weight", "to_kv.weight"}))
    if fused and (train_projections or not around):
        present.append("fused projections (call unfuse_qkv_projections first)")
    if train_projections and _holds_codes(attention):
        present.append("weights that are stored as codes (do not train projections, or load it unquantised)")
    if "forward" in vars(attention):
        present.append("a hook in place of its forward pass (offload to the CPU after mixers are in place, not before)")
    inner = facts.heads * facts.head_dim
    if isinstance(mixer, FeatureMixer) and around and mixer.site.channels != inner:
        present.append(f"{inner} channels in its heads for {mixer.site.channels} outside of them")
    if present:
        raise ValueError(f"{path} cannot be replaced: it has {', '.join(present)}")
    if around and called is not None and called.cores == 0:
        raise ValueError(f"{path} {NO_CORE}")


def _holds_codes(attention: Any) -> bool:
    """Whether a linear layer's weight is no number that could be trained, but what another library makes one of."""
    layers = (module for module in attention.modules() if isinstance(module, nn.Linear))
    return any(not layer.weight.is_floating_point() for layer in layers)


def meta_twin(denoiser: Any) -> Any:
    """The untouched denoiser of the same configuration, without memory: for shapes and FLOPs."""
    with torch.device("meta"):
        return plain_class(denoiser).from_config(denoiser.config)


_probed: dict[tuple[object, ...], dict[str, Grid]] = {}  # a pass takes seconds at real size, and a run asks ten times


def probe_grids(denoiser: Any, size: tuple[int, ...] | None = None) -> dict[str, Grid]:
    """Grid of every site at ``size`` (sides in model space), by a forward pass without memory.

    Class, configuration and size settle the answer, so that one pass serves all denoisers that have them in common.
    """
    kind = plain_class(denoiser)
    key = (kind, json.dumps(dict(denoiser.config), sort_keys=True, default=str), size)
    if key not in _probed:
        _probed[key] = _probe(denoiser, size)
    return dict(_probed[key])


@torch.no_grad()
def _probe(denoiser: nn.Module, size: tuple[int, ...] | None) -> dict[str, Grid]:
    twin = meta_twin(denoiser)
    grids: dict[str, Grid] = {}
    paths = {module: path for path, module in twin.named_modules()}

    def note(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grid = grid_from(stack, args, kwargs)
        assert grid is not None
        prefix = f"{paths[stack]}." if paths[stack] else ""
        grids.update({path: grid for path, _ in self_attentions(twin) if path.startswith(prefix)})

    for stack in transformer_stacks(twin, family_of(twin).stacks):
        stack.register_forward_pre_hook(note, with_kwargs=True)
    twin(**example_inputs(twin, size=size, device="meta"))
    return grids


def students(denoiser: nn.Module) -> dict[str, Any]:
    """Path and student of every site that was replaced; where a teacher stands beside it, what would be left alone."""
    found: dict[str, Any] = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, Shell):
            found[path] = module.as_student()
        elif isinstance(module, (StudentAttention, CoreSite)):
            found.setdefault(path.removesuffix(".student"), module)
    return found
