"""Putting mixers where self-attention was, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from blocks.base import AttentionWeights, TokenMixer
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.place import make_student, put
from sparsight.diffusion.surgery.plan import MixerFactory, PlanEntry, assign, plan_from
from sparsight.diffusion.surgery.shell import AttentionShell, Mode
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites, refuse_unsupported
from sparsight.diffusion.surgery.student import StudentAttention, deliver_grid, install_grid_hooks, transformer_stacks


def replace(
    denoiser: nn.Module,
    mixer: MixerFactory | Sequence[PlanEntry],
    sites: SiteSelection | None = None,
    *,
    train_projections: bool = False,
) -> dict[str, AttentionShell]:
    """Put a shell with a new mixer at every chosen site; everything but the mixers is frozen and in eval mode.

    The denoiser still computes what it did before: shells begin in teacher mode.

    Args:
        denoiser: A UNet2DConditionModel, DiTTransformer2DModel or PixArtTransformer2DModel; changed in place.
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
    if any(isinstance(module, (AttentionShell, StudentAttention)) for module in denoiser.modules()):
        raise ValueError("this denoiser has mixers already: restore it first")
    if isinstance(mixer, Sequence):
        plan = plan_from(mixer=None, sites=sites, plan=mixer)
    else:
        plan = plan_from(mixer=mixer, sites=sites, plan=None)
    chosen = assign(plan, find_sites(denoiser))
    for site, _ in chosen:
        refuse_unsupported(site.path, denoiser.get_submodule(site.path))
    denoiser.requires_grad_(False).eval()
    shells = {}
    for site, factory in chosen:
        attention = denoiser.get_submodule(site.path)
        made = factory(site)
        if not isinstance(made, TokenMixer):
            raise ValueError(f"{type(made).__name__} is no TokenMixer: derive it from CoreMixer or FeatureMixer")
        made.to(next(attention.parameters()).device)
        student = make_student(attention, made, own_projections=train_projections)
        shells[site.path] = AttentionShell(attention, student)
        put(denoiser, site.path, shells[site.path])
    install_grid_hooks(denoiser, family_of(denoiser).stacks)
    return shells


def attention_weights(attention: Any) -> AttentionWeights:
    """The projections of a diffusers attention as plain tensors."""
    q, k, v, out = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]
    return AttentionWeights(
        query=q.weight,
        key=k.weight,
        value=v.weight,
        out=out.weight,
        query_bias=q.bias,
        key_bias=k.bias,
        value_bias=v.bias,
        out_bias=out.bias,
        scale=attention.scale,
    )


def set_mode(shells: Iterable[AttentionShell], mode: Mode, *, idle: Mode = Mode.TEACHER) -> None:
    """Let teacher, student or both compute at these sites from the next forward pass on.

    Args:
        shells: The sites.
        mode: Who computes.
        idle: Who computes instead of the student at sites that have not been handed over to it.
    """
    for shell in shells:
        shell.mode = idle if mode is Mode.STUDENT and not shell.handed_over else mode


def restore(denoiser: nn.Module) -> None:
    """Put the teachers back and take the hooks away: the denoiser as it was, still frozen."""
    for path, shell in shells_of(denoiser).items():
        put(denoiser, path, shell.teacher)
    for stack in transformer_stacks(denoiser, family_of(denoiser).stacks):
        for key, hook in list(stack._forward_pre_hooks.items()):
            if hook is deliver_grid:
                del stack._forward_pre_hooks[key]
                stack._forward_pre_hooks_with_kwargs.pop(key, None)


def finalize(denoiser: nn.Module) -> None:
    """Put every student in the place of its shell, or the teacher where it was not handed over to the student."""
    for path, shell in shells_of(denoiser).items():
        put(denoiser, path, shell.student if shell.handed_over else shell.teacher)


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
        put(denoiser, path, shell.teacher)
    try:
        yield
    finally:
        for path, shell in idle.items():
            put(denoiser, path, shell)


def shells_of(denoiser: nn.Module) -> dict[str, AttentionShell]:
    """Shells by path."""
    return {path: module for path, module in denoiser.named_modules() if isinstance(module, AttentionShell)}
