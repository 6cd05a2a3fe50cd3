"""Putting mixers where self-attention was, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blocks.base import AttentionWeights, Site, TokenMixer
from sparsight.common.errors import ConfigurationError, need_kind
from sparsight.common.quantised.weights import is_coded
from sparsight.common.training.dtypes import compute_dtype
from sparsight.common.training.sharding import whole
from sparsight.diffusion.families.known import facts_of, family_of
from sparsight.diffusion.surgery.core_shell import core_shell, linear_in
from sparsight.diffusion.surgery.joint import is_core
from sparsight.diffusion.surgery.place import make_student, put
from sparsight.diffusion.surgery.plan import MixerFactory, PlanEntry, assign, plan_from
from sparsight.diffusion.surgery.rest.rest import settle_rest
from sparsight.diffusion.surgery.shell import AttentionShell, Mode, Shell
from sparsight.diffusion.surgery.sites import DENOISER, SiteSelection, find_sites, refuse_unsupported
from sparsight.diffusion.surgery.student import OnGrid, deliver_grid, install_grid_hooks, keep_grid, transformer_stacks

_CONTRACT = "what a mixer must have is in docs/your_own_block.md"
_SHELLS = "the values() of what sparsight.replace returned"


def replace(
    denoiser: nn.Module,
    mixer: MixerFactory | Sequence[PlanEntry],
    sites: SiteSelection | None = None,
    *,
    train_projections: bool = False,
) -> dict[str, Shell]:
    """Put a shell with a new mixer at every chosen site; everything but the mixers is frozen and in eval mode.

    The denoiser still computes what it did before: shells begin in teacher mode.

    Args:
        denoiser: Of a family that is served; changed in place.
        mixer: Makes the mixer of a site; or a plan, which says for every site what makes its mixer.
        sites: Which sites; all of them if not given. A plan has its own.
        train_projections: Give core mixers trainable copies of the query, key, value and output projections instead
            of the teacher's own, frozen ones.

    Returns:
        Shells by path.

    Raises:
        ValueError: The denoiser is not supported, a site cannot be replaced, something is replaced already, or the plan
            has an entry without effect.
    """
    need_kind("denoiser", denoiser, nn.Module, DENOISER)
    if any(isinstance(module, OnGrid) for module in denoiser.modules()):
        raise ValueError(
            "this denoiser has mixers already, as an exported student has: name the base instead, or restore it first"
        )
    if isinstance(mixer, Sequence):
        plan = plan_from(mixer=None, sites=sites, plan=mixer)
    else:
        plan = plan_from(mixer=mixer, sites=sites, plan=None)
    chosen = assign(plan, find_sites(denoiser))
    made = {site.path: _made(factory, site) for site, factory in chosen}
    for path, mixer_there in made.items():
        attention = denoiser.get_submodule(path)
        refuse_unsupported(path, attention, mixer_there, train_projections=train_projections)
    denoiser.requires_grad_(False).eval()
    shells: dict[str, Shell] = {}
    for path, mixer_there in made.items():
        attention = denoiser.get_submodule(path)
        mixer_there.to(next(attention.parameters()).device)
        if is_core(mixer_there):
            shells[path] = core_shell(attention, mixer_there, train_projections=train_projections)
        else:
            shells[path] = AttentionShell(attention, make_student(attention, mixer_there))
        put(denoiser, path, cast(nn.Module, shells[path]))
    install_grid_hooks(denoiser, family_of(denoiser).stacks)
    return shells


def _made(factory: MixerFactory, site: Site) -> TokenMixer:
    try:
        made = factory(site)
    except TypeError as error:  # a class that lacks a method, or takes no site
        raise ConfigurationError(f"a mixer for {site.path} cannot be made: {error}; {_CONTRACT}") from error
    if not isinstance(made, TokenMixer):
        raise ValueError(f"{type(made).__name__} is no TokenMixer: derive it from CoreMixer or FeatureMixer")
    try:
        _ = made.options
    except TypeError as error:
        raise ConfigurationError(f"{error}; {_CONTRACT}") from error
    return made


@torch.no_grad()
def attention_weights(attention: Any) -> AttentionWeights:
    """The projections of a diffusers attention as plain tensors, active adapters included, and its norms.

    One without an output projection, which its block has for it, has the identity.
    """
    facts = facts_of(attention)
    assert facts is not None, "a site"
    layers = {"query": attention.to_q, "key": attention.to_k, "value": attention.to_v}
    acting = {name: _acting(layer) for name, layer in layers.items()}
    has_out = "to_out" in dict(attention.named_children())
    acting["out"] = _acting(attention.to_out[0]) if has_out else (torch.eye(facts.heads * facts.head_dim), None)
    weights = {name: weight for name, (weight, _) in acting.items()}
    biases = {f"{name}_bias": bias for name, (_, bias) in acting.items()}
    norms = {
        "query_norm": _norm(attention.norm_q, facts.head_dim),
        "key_norm": _norm(attention.norm_k, facts.head_dim),
    }
    return AttentionWeights(**weights, **biases, **norms, scale=facts.scale)  # type: ignore[arg-type]


def _norm(norm: nn.Module | None, head_dim: int) -> Callable[[Tensor], Tensor] | None:
    """A norm of queries or keys in the precision of what it is given; its parameters may be split over processes.

    Some are over all heads at once.
    """
    if norm is None:
        return None
    parameters = {name: whole(parameter) for name, parameter in norm.named_parameters()}

    def of_each(x_BhNd: Tensor) -> Tensor:
        normed: Tensor = functional_call(norm, parameters, (x_BhNd,)).to(x_BhNd.dtype)
        return normed

    def of_all(x_BhNd: Tensor) -> Tensor:
        return of_each(x_BhNd.transpose(1, 2).flatten(2)).unflatten(-1, (-1, head_dim)).transpose(1, 2)

    return of_all if any(parameter.numel() > head_dim for parameter in parameters.values()) else of_each


def _acting(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer; what adapters are wrapped around, or is stored as codes, is asked for them."""
    inner: Any = linear_in(layer)[1]
    if inner is layer and inner.weight.is_floating_point() and not is_coded(inner.weight):
        return inner.weight, inner.bias
    dtype = compute_dtype(layer)
    columns = torch.eye(inner.in_features, dtype=dtype, device=inner.weight.device)
    bias = layer(torch.zeros_like(columns[:1]))
    return (layer(columns) - bias).T, None if inner.bias is None else bias[0]


def set_mode(shells: Iterable[Shell], mode: Mode, *, idle: Mode = Mode.TEACHER) -> None:
    """Let teacher, student or both compute at these sites from the next forward pass on.

    Args:
        shells: The sites.
        mode: Who computes.
        idle: Who computes instead of the student at sites that have not been handed over to it.

    Raises:
        ConfigurationError: What is given is none of these.
    """
    need_kind("mode", mode, Mode, "one of sparsight.Mode, such as sparsight.Mode.STUDENT")
    need_kind("shells", shells, Iterable, _SHELLS)
    for shell in shells:
        need_kind("shells", shell, Shell, _SHELLS)
        shell.mode = idle if mode is Mode.STUDENT and not shell.handed_over else mode


def restore(denoiser: nn.Module) -> None:
    """Put the teachers back and take the hooks away: the denoiser as it was, still frozen.

    Raises:
        ConfigurationError: It is no module, but a pipeline, say.
    """
    need_kind("denoiser", denoiser, nn.Module, DENOISER)
    settle_rest(denoiser, student=False)
    for path, shell in shells_of(denoiser).items():
        put(denoiser, path, shell.as_teacher())
    for stack in transformer_stacks(denoiser, family_of(denoiser).stacks):
        for key, hook in list(stack._forward_pre_hooks.items()):
            if hook is deliver_grid:
                del stack._forward_pre_hooks[key]
                stack._forward_pre_hooks_with_kwargs.pop(key, None)
        for key, kept in list(stack._forward_hooks.items()):
            if kept is keep_grid:
                del stack._forward_hooks[key]


def finalize(denoiser: nn.Module) -> None:
    """Put every student in the place of its shell, or the teacher where it was not handed over to the student.

    What was trained beside mixers stays in its place.
    """
    settle_rest(denoiser, student=True)
    for path, shell in shells_of(denoiser).items():
        put(denoiser, path, shell.as_student() if shell.handed_over else shell.as_teacher())


@contextmanager
def without_idle(denoiser: nn.Module) -> Iterator[None]:
    """The denoiser with plain teachers at the sites that were not handed over, as exports want it.

    Raises:
        ValueError: There are shells, and none of them was handed over.
    """
    shells = shells_of(denoiser)
    idle = {path: shell for path, shell in shells.items() if not shell.handed_over}
    if shells and len(idle) == len(shells):
        raise ValueError("no site has been handed over to its mixer: train on, until the pruning schedule has begun")
    for path, shell in idle.items():
        put(denoiser, path, shell.as_teacher())
    try:
        yield
    finally:
        for path, shell in idle.items():
            put(denoiser, path, cast(nn.Module, shell))


def shells_of(denoiser: nn.Module) -> dict[str, Shell]:
    """Shells by path."""
    return {path: module for path, module in denoiser.named_modules() if isinstance(module, Shell)}
