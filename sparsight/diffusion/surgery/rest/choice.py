"""Which parameters of a denoiser train beside its mixers, by the names that a configuration gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch

from torch import nn

from sparsight.common.errors import ConfigurationError
from sparsight.common.training.dtypes import COMPUTE
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.surgery.core_shell import CoreShell
from sparsight.diffusion.surgery.shell import AttentionShell, Shell

NORMS, FEED_FORWARD, EVERYTHING = "norms", "feed_forward", "everything"
PARTS = (NORMS, FEED_FORWARD, EVERYTHING)
AFFINE = 1  # axes of what norms multiply by and add


def chosen_parameters(denoiser: nn.Module, shells: Mapping[str, Shell], wanted: Sequence[str]) -> list[str]:
    """Names of the denoiser's own parameters that are asked for; those of mixers are not among them.

    Args:
        denoiser: With shells in it.
        shells: Its shells by path.
        wanted: Of ``PARTS``, or patterns of parameter names.

    Raises:
        ConfigurationError: One of them chooses nothing.
    """
    left = {name: parameter for name, parameter in denoiser.named_parameters() if not is_taken(name, shells)}
    layers = _feed_forward(denoiser)
    chosen: set[str] = set()
    for each in wanted:
        if each == EVERYTHING:
            found = set(left)
        elif each == NORMS:
            found = {name for name, p in left.items() if p.ndim == AFFINE and "norm" in _owner(name)}
        elif each == FEED_FORWARD:
            found = {name for name in left if name.startswith(layers)}
        else:
            found = {name for name in left if fnmatch(name, each)}
        if not found:
            raise ConfigurationError(_nothing(each, left))
        stored = next((name for name in sorted(found) if not _is_plain(left[name])), None)
        if stored is not None:
            raise ConfigurationError(
                f"model.trained.rest: {each!r} chooses {stored}, whose weights are quantised and cannot train: train "
                "adapters on them (model.trained.lora), or load the base unquantised"
            )
        chosen |= found
    return [name for name in left if name in chosen]


def is_taken(name: str, shells: Mapping[str, Shell]) -> bool:
    """Whether a parameter or a layer is a mixer's, or what a mixer or a trained projection has taken the place of.

    Args:
        name: In the denoiser.
        shells: Its shells by path.
    """
    for path, shell in shells.items():
        if name.startswith(f"{path}."):
            own = f"{name.removeprefix(path)}."
            if isinstance(shell, CoreShell):
                gone = ("mixer", *shell.trained_places(), *shell.idle_layers())
                return own.startswith(tuple(f".{each}." for each in gone))
            return isinstance(shell, AttentionShell)
    return False


def _owner(name: str) -> str:
    """Last part of the path of the module that a parameter belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _feed_forward(denoiser: nn.Module) -> tuple[str, ...]:
    """Where names of the parameters of feed-forward layers begin."""
    family = family_of(denoiser)
    return tuple(
        f"{path}.{name}."
        for path, block in denoiser.named_modules()
        if type(block).__name__ in family.blocks
        for name, _ in block.named_children()
        if name in family.feed_forward
    )


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether a parameter holds numbers, not codes; some libraries' are of classes of their own."""
    return parameter.dtype in COMPUTE and type(parameter) is nn.Parameter


def _nothing(wanted: str, left: Iterable[str]) -> str:
    names = list(left)
    if wanted == NORMS:
        return (
            "model.trained.rest: norms chooses nothing: norms of this denoiser have no parameters of their own; what "
            "shifts and scales after them can be named by a pattern of its parameters, such as '*.norm1.*'"
        )
    told = f"{', '.join(names[:3])}, ... ({len(names)} in all)"
    return (
        f"model.trained.rest: {wanted!r} chooses nothing; allowed are {', '.join(PARTS)} and patterns of parameter "
        f"names outside of what mixers replaced: {told}"
    )
