"""Which classes a record may name: a file from elsewhere must not decide what this process imports."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

import blocks
from blocks.base import TokenMixer
from sparsight.common.training.sharding import own_class
from sparsight.diffusion.surgery.sites import students

OURS = blocks.__name__
HOME = Path(str(blocks.__file__)).resolve().parent


def mixer_kinds(denoiser: nn.Module) -> set[type[TokenMixer]]:
    """Classes of the mixers in a denoiser, and of the parts that they are made of."""
    inside = (module for student in students(denoiser).values() for module in student.mixer.modules())
    return {own_class(module) for module in inside if isinstance(module, TokenMixer)}


def mixer_class(path: Any, *, trust_remote_code: bool = False) -> type[TokenMixer]:
    """The mixer that a record names: one of ``blocks``, or one that the running program has imported by itself.

    Args:
        path: Module and class with dots between them.
        trust_remote_code: Import any other module on the import path as well.

    Raises:
        ValueError: It names no mixer, or one of a module that would have to be imported first.
    """
    module_name, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    parts = [*module_name.split("."), name]
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"a record names the mixer {path!r}, which is no module and class with a dot between them")
    # a module's own names alone: its __getattr__ might import what it is asked for
    found = vars(_module(module_name, trust_remote_code=trust_remote_code, path=path)).get(name)
    if not (isinstance(found, type) and issubclass(found, TokenMixer)):
        raise ValueError(f"{path} is no TokenMixer")
    return found


def _module(name: str, *, trust_remote_code: bool, path: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    ours = name.split(".")[0] == OURS and HOME.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()
    if not (ours or trust_remote_code):
        raise ValueError(
            f"the mixer {path} is not part of Sparsight, and nothing else than this record names it, so its code was "
            "not run: if you know that code, name the class in the configuration (or import it first), or set "
            "trust_remote_code to true"
        )
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"mixer {path} cannot be imported: is its file on the path?") from error
