"""Loading diffusers pipelines: from the hub, from folders, and from folders that Sparsight wrote."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsight.common.disk.shipped import meant_model, resolve
from sparsight.common.errors import first_line
from sparsight.common.text import read_json
from sparsight.diffusion.pipelines.pipeline_files import check_names, check_pipeline_files, reading_pipeline
from sparsight.diffusion.pipelines.text_encoders import left_to_package
from sparsight.diffusion.pipelines.trust import LIBRARIES, check_index
from sparsight.diffusion.pipelines.variants import check_variant, variants_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline

DENOISERS = ("unet", "transformer")


def load_pipeline(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
) -> DiffusionPipeline:
    """Load a pipeline from a local folder, a shipped model's name or a hub id.

    A folder that Sparsight exported is loaded with the code installed here; ``trust_remote_code`` runs its own instead.

    Args:
        name: Of the pipeline.
        revision: Git revision on the hub.
        variant: Weight variant, e.g. ``fp16``.
        trust_remote_code: Run code that the folder carries.
        dtype: Precision in which weights come into memory, however they are stored: all but those of a VAE, since some
            leave half precision's range, and those that a model must keep in float32. If not given, it is the
            libraries' choice for each part.

    Raises:
        FileNotFoundError: The folder holds no ``model_index.json``, or neither folder nor hub knows the name.
        ValueError: It names other code than diffusers' and transformers', and that is not trusted; or a file of it is
            damaged, or describes other weights than there are.
    """
    source = resolve(name)
    with reading_pipeline(source):
        pipeline = _load(name, source, revision, variant=variant, trust_remote_code=trust_remote_code, dtype=dtype)
    folder = Path(source)
    part = denoiser_name(pipeline)
    packed = part and pipeline.components[part].config.get("quantization_config")
    if part and not packed and (folder / part).is_dir() and not variants_of(folder / part) - {None}:
        check_names(pipeline.components[part], folder / part, part=part)
    return pipeline


def denoiser_name(pipeline: DiffusionPipeline) -> str:
    """Which of ``DENOISERS`` a pipeline has; empty for none."""
    return next((part for part in DENOISERS if pipeline.components.get(part) is not None), "")


def _load(
    name: str,
    source: str,
    revision: str | None,
    *,
    variant: str | None,
    trust_remote_code: bool,
    dtype: torch.dtype | None,
) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline

    if Path(source).is_dir():
        pipeline = _load_own(Path(source), variant=variant, trust_remote_code=trust_remote_code, dtype=dtype)
        if pipeline is not None:
            return pipeline
    elif source.startswith((".", "/")) or source.count("/") > 1:
        raise FileNotFoundError(f"there is no pipeline folder {source}{meant_model(name)}")
    try:
        index = DiffusionPipeline.load_config(source, revision=revision)
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise FileNotFoundError(
            f"{name!r} is neither a local pipeline folder, nor a model shipped with Sparsight, nor reachable on the "
            f"hub ({first_line(error)}){meant_model(name)}"
        ) from error
    if not trust_remote_code:
        check_index(index, source)
    try:
        return DiffusionPipeline.from_pretrained(
            source, revision=revision, variant=variant, trust_remote_code=trust_remote_code, dtype=_by_part(dtype)
        )
    except OSError as error:
        if Path(source).is_dir():
            raise
        raise FileNotFoundError(
            f"{name!r} cannot be fetched from the hub ({error}); if it holds weights of a variant alone, name that, "
            "e.g. variant: fp16"
        ) from error


def load_polished(
    name: str, *, revision: str | None = None, variant: str | None = None, trust_remote_code: bool = False
) -> DiffusionPipeline:
    """Load a pipeline to train it further: a student's mixers are always this installation's, never its folder's.

    Args:
        name: As in ``load_pipeline``.
        revision: As in ``load_pipeline``.
        variant: As in ``load_pipeline``.
        trust_remote_code: Import mixers that nothing but a student's folder names; of other folders, run their code.
    """
    from sparsight.diffusion.students.load import find_student

    folder = Path(resolve(name))
    if folder.is_dir() and find_student(folder) is not None:
        with reading_pipeline(str(folder)):
            return _load_own(
                folder, variant=variant, trust_remote_code=False, trust_mixers=trust_remote_code, dtype=None
            )
    return load_pipeline(name, revision=revision, variant=variant, trust_remote_code=trust_remote_code)


def _by_part(dtype: torch.dtype | None) -> dict[str, torch.dtype] | None:
    return None if dtype is None else {"default": dtype, "vae": torch.float32}


def _load_own(
    folder: Path,
    *,
    variant: str | None,
    trust_remote_code: bool,
    dtype: torch.dtype | None,
    trust_mixers: bool = False,
) -> DiffusionPipeline | None:
    """The pipeline in a folder of ours: a student, or of a class that diffusers lacks; none if it is neither."""
    from sparsight.diffusion.pipelines.pixel_pipeline import PIXEL_PIPELINES
    from sparsight.diffusion.students.load import find_student, load_student

    path = folder / "model_index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a diffusers pipeline folder: it has no model_index.json")
    check_variant(folder, variant)
    check_pipeline_files(folder, own=PIXEL_PIPELINES)
    index = read_json(path)
    class_name = index["_class_name"]
    kind = PIXEL_PIPELINES.get(str(class_name[-1] if isinstance(class_name, list) and class_name else class_name))
    student = None if trust_remote_code else find_student(folder)
    if kind is None and student is None:
        return None
    made: dict[str, Any] = {}
    if not trust_remote_code:
        check_index(index, str(folder), own=(student, None if kind is None else "_class_name"))
    if student is not None:
        made[student] = load_student(folder / student, variant=variant, trust_remote_code=trust_mixers)
        made[student].to(dtype or torch.float32)
    if kind is None:
        return _load_student_pipeline(folder, made, variant=variant, dtype=dtype)
    made |= left_to_package(index, str(path), dtype=dtype)
    options = {"variant": variant, "dtype": dtype}
    return _load_pixel_pipeline(kind, folder, index, made, options, trust_remote_code=trust_remote_code)


def _load_student_pipeline(
    folder: Path, made: dict[str, Any], *, variant: str | None, dtype: torch.dtype | None
) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline

    without: dict[str, Any] = dict.fromkeys(made)
    rest = DiffusionPipeline.from_pretrained(folder, variant=variant, dtype=_by_part(dtype), **without)
    options = {key: value for key, value in rest.config.items() if key not in rest.components and key[0] != "_"}
    return type(rest)(**rest.components | made, **options)


def _load_pixel_pipeline(
    kind: type[PixelPipeline],
    folder: Path,
    index: Mapping[str, Any],
    made: dict[str, Any],
    of_denoiser: dict[str, Any],
    *,
    trust_remote_code: bool,
) -> PixelPipeline:
    from diffusers import AutoModel

    arguments = {name: index.get(name) for name in inspect.signature(kind).parameters} | made
    for part, address in arguments.items():
        options: dict[str, Any] = {"subfolder": part} | (of_denoiser if part in DENOISERS else {})
        if part in made or not isinstance(address, list):
            continue
        if address[0] in LIBRARIES:
            part_class = resolve_name(f"{address[0]}:{address[1]}")
            arguments[part] = part_class.from_pretrained(folder, **options)
        else:
            arguments[part] = AutoModel.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **options)
        loaded: Any = arguments[part]
        if part not in DENOISERS and isinstance(loaded, nn.Module) and of_denoiser["dtype"] is not None:
            loaded.to(of_denoiser["dtype"])
    return kind(**arguments)
