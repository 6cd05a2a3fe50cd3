"""Reading checkpoints in which core mixers stood beside copies of their attention, before they became its core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsight.diffusion.surgery.core_shell import TRAINED, CoreShell
from sparsight.diffusion.surgery.shell import Shell


def former_names(shells: Mapping[str, Shell]) -> dict[str, str]:
    """Today's names of what is trained at core sites, by the former ones; both as in a state dict of the module.

    Args:
        shells: Shells of the module, by path.
    """
    names: dict[str, str] = {}
    for path, shell in shells.items():
        if isinstance(shell, CoreShell):
            names |= {f"denoiser.{old}": f"denoiser.{path}.{new}" for old, new in _moved(path, shell).items()}
    return names


def follow_names(checkpoint: dict[str, Any], shells: Mapping[str, Shell]) -> None:
    """Give what a checkpoint holds of core sites the names and the order of today; others stay as they are.

    Args:
        checkpoint: Of Lightning, with weights under ``denoiser``; changed in place. Where a strategy has taken the
            weights out already, names in the states of callbacks are followed alone.
        shells: Shells of the module that it is loaded into, by path.
    """
    former = list(checkpoint.get("state_dict", ()))
    names = former_names(shells)
    for part in ("state_dict", "callbacks", "optimizer_states"):
        if part in checkpoint:
            checkpoint[part] = _renamed(checkpoint[part], names)
    if not names.keys() & set(former):
        return
    order = _order([names.get(name, name) for name in former], shells)
    for optimizer in checkpoint.get("optimizer_states", ()):
        for group in optimizer["param_groups"]:
            if len(group["params"]) == len(order):
                group["params"] = [group["params"][place] for place in order]


def _moved(path: str, shell: CoreShell) -> dict[str, str]:
    """Today's names of what is trained at a site, below the site, by the former ones, below the denoiser."""
    trained = {
        f"{path}.student.{own}.{name}": f"{place}.{name}"
        for own, (place, layer) in shell.trained_places().items()
        for name, _ in layer.named_parameters()
    }
    mixer = shell.as_student().mixer
    return trained | {f"{path}.student.mixer.{name}": f"mixer.{name}" for name in mixer.state_dict()}


def _order(names: list[str], shells: Mapping[str, Shell]) -> list[int]:
    """Places, among the former parameters, of today's, which have a site's mixer before its projections."""
    paths = [f"denoiser.{path}." for path in shells]

    def key(place: int) -> tuple[int, bool, int]:
        name = names[place]
        site = next(number for number, path in enumerate(paths) if name.startswith(path))
        return site, f".mixer.{TRAINED}." in name, place

    return sorted(range(len(names)), key=key)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
