"""Packages with fast kernels, which may or may not be there."""

from __future__ import annotations

import functools
import warnings
from importlib import import_module
from types import ModuleType


@functools.cache
def optional_package(name: str) -> ModuleType | None:
    """A package, or ``None`` with one warning if it is missing or broken; ask for it outside of compiled code.

    Args:
        name: What is imported, e.g. ``natten``.
    """
    reason = why_missing(name)
    if reason:
        warnings.warn(f"without {name} the slower form in plain torch is used: {reason}", stacklevel=2)
        return None
    return import_module(name)


@functools.cache
def why_missing(name: str) -> str:
    """Why a package cannot be imported, in a line; empty if it can."""
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # binaries for another torch or device
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""
