"""Old names of modules and classes that users may have written down; they lead to the new ones for one release."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sparsight.common.names import named

MODULES: dict[str, tuple[str, ...]] = {  # each name of an old module is in one of the new ones
    "sparsight.analysis.bootstrap": ("sparsight.common.bootstrap",),
    "sparsight.cli": ("sparsight.command.cli",),
    "sparsight.diffusion.model": ("sparsight.diffusion.model.diffusion_model", "sparsight.diffusion.model.load"),
    "sparsight.distill.stages": ("sparsight.diffusion.train.stages",),
    "sparsight.evaluation.reform_eval.perturb": ("sparsight.evaluation.questions.variant",),
    "sparsight.export.adapters": ("sparsight.diffusion.students.adapters",),
    "sparsight.export.delta": ("sparsight.diffusion.export.delta",),
    "sparsight.lvlm.lora": ("sparsight.lvlm.model.lora",),
    "sparsight.lvlm.retire": ("sparsight.lvlm.surgery.retire",),
    "sparsight.lvlm.selection": ("sparsight.lvlm.surgery.selection",),
    "sparsight.lvlm.stages": ("sparsight.lvlm.train.stages",),
    "sparsight.lvlm.tower": ("sparsight.lvlm.model.tower",),
    "sparsight.metrics": ("sparsight.evaluation.images", "sparsight.evaluation.texts"),
    "sparsight.schedule": ("sparsight.common.training.schedule",),
    "sparsight.surgery.sites": ("sparsight.diffusion.surgery.sites",),
}


def find_moved(module: str, name: str) -> Any:
    """What ``name`` of an old ``module`` is now.

    Raises:
        AttributeError: There is no such name.
    """
    for new in MODULES.get(module, ()) if not name.startswith("__") else ():
        found = named(f"{new}.{name}")
        if found is not None:
            warnings.warn(f"{module}.{name} is {new}.{name} now", FutureWarning, stacklevel=3)
            return found
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def current_class_path(path: str) -> str:
    """A class path as it is called now; others unchanged."""
    module, _, name = path.rpartition(".")
    if module not in MODULES:
        return path
    return next((f"{new}.{name}" for new in MODULES[module] if named(f"{new}.{name}") is not None), path)


class _Old(MetaPathFinder, Loader):
    """Makes modules of old names, which hold nothing of their own."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        known = any(old == fullname or old.startswith(f"{fullname}.") for old in MODULES)
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = lambda name: find_moved(module.__name__, name)


def lead_old_names() -> None:
    """Let imports of old names find the new ones, once."""
    if not any(isinstance(finder, _Old) for finder in sys.meta_path):
        sys.meta_path.append(_Old())  # last: what is really there comes first
