"""What makes an exported class out of a diffusers class; this file's text travels inside the exports.

It must stay free of imports that a plain diffusers installation lacks: ``sparsight.diffusion.students.modeling`` takes
imports of this project away, and puts the text of what they name in the same file.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from blocks.base import Grid, Site, TokenMixer
from sparsight.diffusion.surgery.replace import make_student, put
from sparsight.diffusion.surgery.student import install_grid_hooks


class SavedWithCode:
    """First base of an exported class: whoever saves the object saves this file beside its configuration."""

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the configuration, and this file."""
        super().save_config(save_directory, *args, **kwargs)  # type: ignore[misc]
        code = Path(__file__)
        Path(save_directory, code.name).write_bytes(code.read_bytes())

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Read a configuration; the address of this file is no option, and none to warn about."""
        options = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(options, **kwargs)  # type: ignore[misc]


class ExportedPipeline(SavedWithCode):
    """Mixed into a pipeline class that diffusers does not have."""

    def to_json_string(self) -> str:
        """The pipeline's index; it names this file, and where ``AutoModel`` finds the code of a student in it."""
        index = json.loads(super().to_json_string())  # type: ignore[misc]
        index["_class_name"] = [Path(__file__).stem, type(self).__name__]
        for part in self.components.values():  # type: ignore[attr-defined]
            if getattr(part, "_auto_class", None) is not None:  # of a file of its own, or a part of any library
                index["auto_map"] = {"AutoModel": f"{type(part).__module__}.{type(part).__name__}"}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"


class ExportedStudent(SavedWithCode):
    """Mixed into a denoiser class whose self-attentions are replaced."""

    _auto_class = "AutoModel"
    stacks: ClassVar[frozenset[str]]
    """Classes of the modules that flatten an image into tokens, by name."""


def place_students(denoiser: Any, record: Mapping[str, Any], mixers: Mapping[str, type[TokenMixer]]) -> None:
    """Put fresh mixers where the record says.

    Args:
        denoiser: The untouched diffusers model, an :class:`ExportedStudent`.
        record: What was changed, as ``sparsight.diffusion.surgery.record`` writes it.
        mixers: Classes by the path that the record knows them by.
    """
    for path, entry in record["sites"].items():
        site = Site(**{**entry["site"], "grid": Grid(**entry["site"]["grid"])})
        mixer = mixers[entry["class_path"]](site, **entry["options"])
        put(denoiser, path, make_student(denoiser.get_submodule(path), mixer, own_projections=False))
    install_grid_hooks(denoiser, denoiser.stacks)


def signature_with_student(init: Callable[..., None]) -> inspect.Signature:
    """What diffusers may read from a configuration: the options of the base class, and the record."""
    signature = inspect.signature(init)
    student = inspect.Parameter("student", inspect.Parameter.KEYWORD_ONLY)
    return signature.replace(parameters=[*signature.parameters.values(), student])


def settle(earlier: Mapping[str, Any], module: dict[str, Any]) -> None:
    """End of the file: diffusers runs it again at every load, which must not change what exists already.

    Args:
        earlier: The module's names before this run; without the file's own ones at the first.
        module: The module's names.
    """
    module.update(earlier)
    # exported classes go by the file's name, so that saved pipelines name a file and not a place in a cache
    sys.modules[Path(__file__).stem] = sys.modules[__name__]
