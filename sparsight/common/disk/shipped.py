"""Models that are shipped with the package, found by their names."""

from __future__ import annotations

from pathlib import Path

from sparsight.common.disk.folders import put_back
from sparsight.common.near import beside, closest, suggestion

ASSETS = Path(__file__).parents[2] / "assets"


def resolve(name: str) -> str:
    """A folder as it is, one of the models shipped in ``sparsight/assets`` by its name, or a hub id unchanged."""
    put_back(Path(name))
    if not Path(name).exists() and (ASSETS / name).is_dir():
        return str(ASSETS / name)
    return name


def meant_model(name: str) -> str:
    """An addition to a message that names folders and shipped models that are nearly called so."""
    shipped = [each.name for each in ASSETS.iterdir() if each.is_dir()]
    return suggestion([*beside(Path(name).expanduser()), *closest(name, shipped)])
