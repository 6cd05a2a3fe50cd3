"""A denoiser of which more than the mixers trains, and that is its own teacher all the same.

What trains of its layers are parameters in float32 in the places of its own, which stay, frozen, in a child of the
denoiser. A forward pass in which no student computes finds those in their places, so that the teacher is what it was,
bit by bit; low-rank adapters are off in such a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import under_autocast
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.surgery.rest.low_rank import LoRA, Switch, adapted_layers, add_adapters, take_adapters
from sparsight.diffusion.surgery.shell import Mode, Shell

CHILD = "frozen_rest"
"""Of the denoiser; in no state dict."""


class Rest(nn.Module):
    """What a denoiser's teacher has that its student has not, mixers and their sites left out.

    Args:
        kept: The base's parameters by name, in place of which others train.
        adapters: Paths of layers with adapters.
        sites: Paths of the shells.
        computes_in: Precision of the denoiser's inputs.

    Attributes:
        names: Names of ``kept``, as the denoiser has them.
        computes_in: See above; it is not that of the trained parameters.
    """

    def __init__(
        self, kept: Mapping[str, Tensor], adapters: Iterable[str], *, sites: Iterable[str], computes_in: torch.dtype
    ) -> None:
        super().__init__()
        self.names = list(kept)
        self.kept = nn.ParameterList([nn.Parameter(tensor, requires_grad=False) for tensor in kept.values()])
        self.adapters, self.sites = list(adapters), list(sites)
        self.computes_in = computes_in
        self._away: dict[str, Any] = {}
        self._switch = Switch()

    def state_dict(self, *args: Any, destination: Any = None, **options: Any) -> Any:
        """Nothing: all of this is in the base."""
        return {} if destination is None else destination

    def enter(self, denoiser: nn.Module) -> None:
        """Before a forward pass: what computes in it into its place.

        A student whose layers compute in half precision without autocast has what trains cast to theirs.
        """
        if self._away:  # a pass that has ended in an error far inside
            self.leave(denoiser)
        student = any(_computes(denoiser, path) for path in self.sites)
        if not student:
            self._switch.off(denoiser.get_submodule(path) for path in self.adapters)
        for name, kept in zip(self.names, self.kept, strict=True):
            owner, key = _place(denoiser, name)
            trained: Any = owner._parameters[key]
            if not student:
                self._away[name], owner._parameters[key] = trained, kept
            elif trained.dtype != kept.dtype and not under_autocast(trained):
                self._away[name], owner._parameters[key] = trained, trained.to(kept.dtype)

    def leave(self, denoiser: nn.Module) -> None:
        """After it: what trains, back."""
        self._switch.on()
        for name, trained in self._away.items():
            owner, key = _place(denoiser, name)
            owner._parameters[key] = trained
        self._away.clear()


def free_rest(
    denoiser: nn.Module, shells: Mapping[str, Shell], names: Iterable[str], lora: LoRA | None = None
) -> list[str]:
    """Let parameters of a denoiser train, and adapters on its other linear layers, beside its mixers.

    Args:
        denoiser: With shells in it; changed in place.
        shells: Its shells by path.
        names: Of the parameters, see ``chosen_parameters``.
        lora: Adapters, if there are to be any.

    Returns:
        Names of what trains by it.

    Raises:
        ConfigurationError: There is no layer that adapters could be put on.
    """
    dtype = compute_dtype(denoiser)
    kept: dict[str, Tensor] = {}
    for name in names:
        owner, key = _place(denoiser, name)
        own: Any = owner._parameters[key]
        kept[name] = own.detach()
        wide = own.dtype if own.dtype == torch.float64 else torch.float32  # half precision swallows small updates
        owner._parameters[key] = nn.Parameter(own.detach().to(wide, copy=True))
    adapters = {} if lora is None else add_adapters(denoiser, shells, lora, without=kept)
    denoiser.add_module(CHILD, Rest(kept, adapters, sites=shells, computes_in=dtype))
    denoiser.register_forward_pre_hook(_enter)
    denoiser.register_forward_hook(_leave, always_call=True)
    return [*kept, *(name for parameters in adapters.values() for name in parameters)]


@torch.no_grad()
def settle_rest(denoiser: nn.Module, *, student: bool) -> None:
    """Leave the student, or the teacher, alone in a denoiser: parameters in the base's precision, no adapters.

    Args:
        denoiser: Changed in place.
        student: Which of them stays.
    """
    rest = rest_of(denoiser)
    if rest is None:
        return
    for name, kept in zip(rest.names, rest.kept, strict=True):
        owner, key = _place(denoiser, name)
        left: Any = owner._parameters[key].to(kept.dtype) if student else kept  # type: ignore[union-attr]
        owner._parameters[key] = nn.Parameter(left.detach(), requires_grad=False)
    take_adapters(denoiser, merge=student)
    delattr(denoiser, CHILD)
    registered: list[tuple[Any, Any]] = [(denoiser._forward_pre_hooks, _enter), (denoiser._forward_hooks, _leave)]
    for hooks, ours in registered:
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]


def rest_of(denoiser: nn.Module) -> Rest | None:
    """What trains beside mixers, if something does."""
    found = denoiser._modules.get(CHILD)
    return found if isinstance(found, Rest) else None


def changed_in_rest(denoiser: nn.Module) -> set[str]:
    """Names, in a denoiser without adapters, of parameters that the student has of its own beside mixers."""
    rest = rest_of(denoiser)
    return set() if rest is None else {*rest.names, *(f"{path}.weight" for path in adapted_layers(denoiser))}


def _enter(denoiser: nn.Module, args: Any) -> None:
    """Forward pre-hook of the denoiser; it uses the module that it is given, so that deep copies work."""
    rest = rest_of(denoiser)
    if rest is not None:
        rest.enter(denoiser)


def _leave(denoiser: nn.Module, args: Any, output: Any) -> None:
    rest = rest_of(denoiser)
    if rest is not None:
        rest.leave(denoiser)


def _place(denoiser: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, key = name.rpartition(".")
    return denoiser.get_submodule(owner), key


def _computes(denoiser: nn.Module, path: str) -> bool:
    shell = denoiser.get_submodule(path)
    return isinstance(shell, Shell) and shell.mode is Mode.STUDENT
