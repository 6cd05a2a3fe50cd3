"""Checks that turn a broken installation into one readable line, made before anything heavy is imported."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PLUGINS = ("blocks", "callbacks", "datamodules", "lightning_modules")


def check_plugins(home: Path | None = None) -> None:
    """See that the plug-in packages on the import path are the ones that came with this ``sparsight``.

    Args:
        home: Folder that must hold them; none means the one that holds ``sparsight``.

    Raises:
        SystemExit: One is missing or comes from elsewhere; the message names both places and what to do.
    """
    home = (Path(__file__).parents[2] if home is None else home).resolve()
    for name in PLUGINS:
        found = _folder_of(name)
        if found is None:
            raise SystemExit(f"sparsight: its package {name!r} is missing from {home}: install sparsight again")
        if found != home / name:
            raise SystemExit(
                f"sparsight: the package {name!r} was found in {found}, which hides sparsight's own in {home / name}. "
                f"Take {found.parent} off PYTHONPATH or uninstall what put it there, "
                "or give sparsight a virtual environment of its own."
            )


def check_torch_pair() -> None:
    """See that torch and torchvision fit each other, which Lightning, torchmetrics and timm rely on.

    Raises:
        SystemExit: Importing either fails; the message names both versions, the reason and what to do.
    """
    for name in ("torch", "torchvision"):
        try:
            import_module(name)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SystemExit(
                f"sparsight: torch {_version('torch')} and torchvision {_version('torchvision')} do not work together "
                f"({name}: {reason}). Install the pair that your package index serves together: "
                "pip install --force-reinstall torch torchvision"
            ) from error


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"
