"""Loading exported students with this project's own code instead of the code that they carry."""

from __future__ import annotations

import warnings
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from diffusers.models.modeling_utils import no_init_weights

from sparsight.common.disk.weights import read_tensors
from sparsight.common.errors import ConfigurationError, reason_of
from sparsight.common.text import read_json
from sparsight.diffusion.families.known import FAMILIES
from sparsight.diffusion.pipelines.variants import weights_of
from sparsight.diffusion.students.adapters import AdapterGuard
from sparsight.diffusion.students.modeling import student_file
from sparsight.diffusion.surgery.known_mixers import mixer_kinds
from sparsight.diffusion.surgery.record import apply_record

PREFIX = "Student"


CLASSES: dict[str, Any] = {
    family.name: type(
        f"Student{family.name}", (AdapterGuard, resolve_name(f"diffusers:{family.name}")), {"__module__": __name__}
    )
    for family in FAMILIES.values()
    if family.loads_adapters
}
"""Denoisers with mixers of this installation, of classes whose adapters must be watched."""
globals().update({kind.__name__: kind for kind in CLASSES.values()})  # where pickle looks for them


def find_student(folder: Path) -> str | None:
    """The part of a pipeline folder that is an exported student: ``unet``, ``transformer`` or none."""
    return next((part for part in ("unet", "transformer") if "student" in _config(folder / part)), None)


def load_student(folder: Path, *, variant: str | None = None, trust_remote_code: bool = False) -> Any:
    """The diffusers model in a student's folder, in fp32, with mixers of this installation at its sites.

    Args:
        folder: Holds ``config.json`` and safetensors.
        variant: Weight variant, e.g. ``fp16``; taken if the folder has it.
        trust_remote_code: Import mixers that nothing but the folder names, from this installation's import path.

    Raises:
        ValueError: The configuration is damaged, a mixer may not or cannot be imported, or the weights do not fit it.
    """
    config = _config(folder)
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        base = config["_class_name"].removeprefix(PREFIX)
        record, code = options.pop("student"), options.pop("auto_map")["AutoModel"].partition(".")[0]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {reason_of(error)}") from error
    if base not in FAMILIES:
        raise ValueError(f"{folder} holds a {base!r}; students are of {', '.join(FAMILIES)}")
    with no_init_weights():
        model = (CLASSES.get(base) or resolve_name(f"diffusers:{base}")).from_config(options)
        apply_record(model, record, trust_remote_code=trust_remote_code)
    ours = student_file(mixer_kinds(model), base)
    if ours.stem != code:
        warnings.warn(
            f"{folder} carries code of another version of its mixers than the one installed ({code}, not {ours.stem}); "
            "if its answers look wrong, load it with trust_remote_code to run its own",
            stacklevel=2,
        )
    files = weights_of(folder, variant)
    if not files:
        raise ConfigurationError(
            f"{folder} holds no weights, such as diffusion_pytorch_model.safetensors: copy it again"
        )
    state = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit the installed mixers: {error}") from error
    return model.eval()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
