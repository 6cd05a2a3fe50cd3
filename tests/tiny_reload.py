"""Exports read back in the process that wrote them: a fresh one takes ten seconds to start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from diffusers.utils import dynamic_modules_utils
from transformers import dynamic_module_utils

from sparsight.diffusion.export import reload as student
from sparsight.diffusion.export import verify
from sparsight.lvlm.export import adapters, reload, reload_adapter, write

USERS: tuple[tuple[Any, Any], ...] = ((verify, student), (write, reload), (adapters, reload_adapter))
CODE = ("diffusers_modules", "transformers_modules")  # the packages that libraries make of code in exports


def read_back_here(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Call the scripts that read exports back as functions; all else of what they check stays."""
    for user, script in USERS:
        replace(user, "run_fresh", partial(_run_here, script.main))


def _run_here(
    main: Callable[..., None], _script: str, arguments: Iterable[str], *, scratch: str, refused: Iterable[str] = ()
) -> None:
    """Code in the export is imported from ``scratch``, and forgotten afterwards."""
    libraries = (dynamic_modules_utils, dynamic_module_utils)
    folders, modules = [library.HF_MODULES_CACHE for library in libraries], _forget_code()
    for library in libraries:
        library.HF_MODULES_CACHE = scratch
    sys.path.insert(0, scratch)
    failed = None
    try:
        main(*arguments)
    except SystemExit as end:
        failed = str(end)
    finally:
        for library, folder in zip(libraries, folders, strict=True):
            library.HF_MODULES_CACHE = folder
        sys.path.remove(scratch)
        _forget_code()
        sys.modules.update(modules)
    if failed is not None:
        raise RuntimeError(f"the export does not load: {failed}")


def _forget_code() -> dict[str, Any]:
    """Take code of exports out of the imported modules."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in CODE}
