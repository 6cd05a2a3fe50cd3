"""What makes an exported class out of a diffusers class; this file's text travels inside the exports.

What it imports of this project travels along, so it must stay free of imports that a plain diffusers lacks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from blocks.base import Grid, Site, TokenMixer
from sparsight.diffusion.students.saved import SavedWithCode
from sparsight.diffusion.surgery.place import make_student, put
from sparsight.diffusion.surgery.student import install_grid_hooks


class ExportedStudent(SavedWithCode):
    """Mixed into a denoiser class whose self-attentions are replaced."""

    _auto_class = "AutoModel"
    stacks: ClassVar[frozenset[str]]
    """Classes of the modules that flatten an image into tokens, by name."""


def place_students(denoiser: Any, record: Mapping[str, Any], mixers: Mapping[str, type[TokenMixer]]) -> None:
    """Put fresh mixers where the record says.

    Args:
        denoiser: The untouched diffusers model, an ``ExportedStudent``.
        record: What was changed, as ``sparsight.diffusion.surgery.record`` writes it.
        mixers: Classes by the path that the record knows them by.
    """
    for path, entry in record["sites"].items():
        site = Site(**{**entry["site"], "grid": Grid(**entry["site"]["grid"])})
        mixer = mixers[entry["class_path"]](site, **entry["options"])
        put(denoiser, path, make_student(denoiser.get_submodule(path), mixer))
    install_grid_hooks(denoiser, denoiser.stacks)


def signature_with_student(init: Callable[..., None]) -> inspect.Signature:
    """What diffusers may read from a configuration: the options of the base class, and the record."""
    signature = inspect.signature(init)
    student = inspect.Parameter("student", inspect.Parameter.KEYWORD_ONLY)
    return signature.replace(parameters=[*signature.parameters.values(), student])
