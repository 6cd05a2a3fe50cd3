"""What stands in the files of a pipeline's folder, looked at before libraries stumble over it."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import safe_open
from torch import nn

from sparsight.common.errors import ConfigurationError, Told
from sparsight.common.names import named
from sparsight.common.text import read_json, read_options
from sparsight.diffusion.pipelines.trust import LIBRARIES
from sparsight.diffusion.pipelines.variants import variants_of

INDEX = "model_index.json"


def check_pipeline_files(folder: Path, *, own: Collection[str] = ()) -> None:
    """See that the index of a local pipeline names classes that there are, and that the files of all parts are options.

    Args:
        folder: Of the pipeline.
        own: Names of pipelines that diffusers lacks.

    Raises:
        ValueError: The message names the file and what is wrong in it.
    """
    path = folder / INDEX
    index = read_json(path)
    named = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(named, (str, list)):
        raise ConfigurationError(f"{path} is damaged: it has no _class_name that is a name")
    if isinstance(named, str) and named not in own:
        _check_class(path, "diffusers", named, what="it")
    for part, address in index.items():
        if part.startswith("_") or (isinstance(address, list) and address == [None, None]):
            continue
        if (folder / part).is_dir():
            _check_part(folder / part, address, path)
        elif isinstance(address, list) and len(address) == 2 and address[0] in LIBRARIES:
            raise ConfigurationError(f"{path} names {part}, but there is no folder {folder / part}")


def _check_part(part: Path, address: Any, index: Path) -> None:
    names = isinstance(address, list) and all(isinstance(each, str) for each in address)
    if not names:
        raise ConfigurationError(
            f"{index} is damaged: its {part.name} is {address!r}, not a library and a class, as in "
            '["diffusers", "DDPMScheduler"]'
        )
    configs = read_options(part)
    if variants_of(part) and not (part / "config.json").is_file():
        raise ConfigurationError(f"{part} holds weights, but no config.json: copy the folder again")
    library, name = address[0], address[-1]
    if len(address) == 2 and library in LIBRARIES:
        _check_class(index, library, name, what=f"its {part.name}")
        _check_weights(part, f"{library}.{name}")
    for file, config in configs.items():
        made_by = config.get("_class_name", name)
        if library == "diffusers" and len(address) == 2 and made_by != name and name != "AutoModel":
            _check_class(part / file, library, made_by, what="it")


def _check_weights(part: Path, kind: str) -> None:
    found = named(kind)
    if isinstance(found, type) and issubclass(found, nn.Module) and not variants_of(part):
        name = "diffusion_pytorch_model" if kind.startswith("diffusers.") else "model"
        raise ConfigurationError(f"{part} holds no weights, such as {name}.safetensors: copy the folder again")


def _check_class(path: Path, library: str, name: Any, *, what: str) -> None:
    module = importlib.import_module(library)
    if isinstance(name, str) and name.isidentifier() and named(f"{library}.{name}") is not None:
        return
    close = get_close_matches(str(name), dir(module), n=2)
    meant = f"; did you mean {' or '.join(close)}?" if close else ": copy the folder again"
    raise ConfigurationError(f"{path} says that {what} is a {name}, which {library} does not have{meant}")


@contextmanager
def reading_pipeline(source: str) -> Iterator[None]:
    """Whatever libraries raise over the files of a pipeline names the file that they were made from.

    Raises:
        ConfigurationError: The pipeline cannot be built.
    """
    try:
        yield
    except (Told, ImportError, MemoryError):
        raise
    except OSError as error:
        if not Path(source).is_dir() or error.errno is not None or _refused_here(error):
            raise
        raise ConfigurationError(f"{source} cannot be loaded: {_first(error).rstrip('.')}: copy it again") from error
    except Exception as error:  # of any kind, depending on which value is wrong
        if _refused_here(error):
            raise
        part = _part_at_work(error.__traceback__)
        files = Path(source, part or "")
        config = next(iter(read_options(files)), None) if part else None
        where = f"the files of {source}" if config is None else str(files / config)
        raise ConfigurationError(
            f"{where}: {part or 'the pipeline'} cannot be built from it: {type(error).__name__}: {_first(error)}"
        ) from error


def _refused_here(error: BaseException) -> bool:
    """Whether an error is a refusal of this project's own, which names what is wrong already."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals["__name__"])
    return isinstance(error, (ValueError, OSError)) and name.startswith("sparsight.")


def check_names(model: Any, folder: Path, *, part: str) -> None:
    """See that the weights in a folder are those that its configuration describes; diffusers would draw what lacks.

    Args:
        model: As it was loaded.
        folder: Of the part, on this machine.
        part: Its name.

    Raises:
        ConfigurationError: Some are missing, or left over.
    """
    stored: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored |= set(file.keys())
    wanted = set(model.state_dict())
    if stored and stored != wanted:
        missing, surplus = sorted(wanted - stored), sorted(stored - wanted)
        raise ConfigurationError(
            f"{folder / 'config.json'} does not describe the weights beside it: missing {missing[:3]} ({len(missing)} "
            f"in all), left over {surplus[:3]} ({len(surplus)}): copy the folder again, or load it with the version of "
            f"diffusers that wrote this {part}"
        )


def _part_at_work(trace: TracebackType | None) -> str | None:
    """The part of the pipeline that was being made, as diffusers' loader or ours calls it."""
    found = None
    while trace is not None:
        values: Mapping[str, Any] = trace.tb_frame.f_locals
        name = {"load_sub_model": "name", "_load_pixel_pipeline": "part", "load_student": "folder"}.get(
            trace.tb_frame.f_code.co_name
        )
        if name is not None and name in values:
            found = Path(str(values[name])).name
        trace = trace.tb_next
    return found


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
