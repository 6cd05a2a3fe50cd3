"""Options of verbs, of the trainer and of plug-ins, read from source: nothing heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sparsight.command.plugins import HOME
from sparsight.command.sources import Module, Sources, read_modules
from sparsight.command.startup import PLUGINS
from sparsight.common.moved import OPTIONS as FORMER
from sparsight.common.near import closest, suggestion

TRAINER = "sparsight.command.trainer.SparsightTrainer"
FILLED_IN = ("self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "kwargs")
SHARED = (
    "config",
    "print_config",
    "help",
    "seed_everything",
    "matmul_precision",
    "model",
    "data",
    "trainer",
    "images.folder",
    "report",
)
OTHERS = {  # verbs that take no config
    "compare": ["output", "names", "resamples"],
    "evaluate": [
        *("tasks", "output", "data", "limit", "methods", "new_tokens", "batch_size", "dtype"),
        *("python", "backend", "model_args", "task_folder"),
    ],
    "report": ["output", "names"],
    "schema": ["output"],
    "list": ["json"],
    "completion": [],
}
BELOW_CLASS = ("class_path", "init_args", "dict_kwargs")  # what a class in a config has; flags may leave them out
_FEW = 4  # classes that a message names at most
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_TRAINER_FILES = (HOME / "sparsight" / "command" / "trainer.py", HOME / "sparsight" / "command" / "verbs.py")
_LIGHTNING_FILES = ("__init__.py", "trainer/__init__.py", "trainer/trainer.py")


def options_of_verb(verb: str) -> list[str]:
    """Options of a verb, without dashes; of what has options itself, such as ``model``, the name alone."""
    if verb in OTHERS:
        return OTHERS[verb]
    method = _trainer_sources().method(TRAINER, verb)
    own = [] if method is None else [each.arg for each in (*method.args.args, *method.args.kwonlyargs)]
    return [*(name for name in own if name not in FILLED_IN), *SHARED]


def options_of_trainer() -> list[str]:
    """Options of the trainer: ours, and those of Lightning's."""
    sources = _trainer_sources()
    kinds = sources.ours(TRAINER)
    found = {option.partition("=")[0] for kind in kinds for option in sources.options(kind)}
    return sorted(found - {*FILLED_IN})


@cache
def options_of_plugin(class_path: str) -> list[str] | None:
    """Options of one of our plug-ins, by their names of today and of before.

    Args:
        class_path: May be the bare name.

    Returns:
        None if it is none of ours, or its own source does not say all of its options.
    """
    found = _source_of(class_path)
    if found is None or not found[0].tells_all_options(found[1]):
        return None
    return [*_names(*found), *FORMER.get(found[1].rpartition(".")[2], {})]


@cache
def options_in_group(class_path: str, way: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """The dataclass that an option of one of our plug-ins is, or is several of, and the options of that.

    Args:
        class_path: May be the bare name.
        way: An option of its constructor, then one of the dataclass that it is, and so on.

    Returns:
        None if the option is something else, or its source does not say.
    """
    found = _source_of(class_path)
    for option in way:
        kind = found and found[0].annotated(found[1], option)
        found = _dataclass_of(kind) if kind else None
    return found and (found[1].rpartition(".")[2], _names(*found))


def _dataclass_of(kind: str) -> tuple[Sources, str] | None:
    """Where a dataclass of ours is written, with those that it derives from; none if it is something else."""
    sources = _with_bases(kind)
    is_whole = kind in sources.classes and sources.is_dataclass(kind) and sources.tells_all_options(kind)
    return (sources, kind) if is_whole else None


def _with_bases(kind: str) -> Sources:
    """The files of a class of ours and of those that it derives from."""
    modules: dict[str, Module] = {}
    while True:
        sources = Sources(modules)
        names = {each.rpartition(".")[0] for each in sources.ancestors(kind)} - modules.keys()
        files = [HOME.joinpath(*name.split(".")).with_suffix(".py") for name in names]
        found = dict(read_modules([file for file in files if file.is_file()], HOME))
        if not found:
            return sources
        modules |= found


def _source_of(class_path: str) -> tuple[Sources, str] | None:
    """Where the one plug-in of that name is written, and its full name."""
    package, _, name = class_path.rpartition(".")
    files = [
        file
        for file in plugin_classes().get(name, ())
        if not package or file.relative_to(HOME).parts[0] == package.split(".")[0]
    ]
    if len(files) != 1:
        return None
    sources = Sources(dict(read_modules(files, HOME)))
    return sources, next(each for each in sources.classes if each.rpartition(".")[2] == name)


def _names(sources: Sources, path: str) -> list[str]:
    return [option.partition("=")[0] for option in sources.options(path)]


def close_options(kind: str, name: str, known: Iterable[str]) -> str:
    """An addition to a message that names options which are nearly called so, by their names of today, or who has it.

    Args:
        kind: Name of the class.
        name: What was given.
        known: Options of the class.
    """
    if name in BELOW_CLASS:
        return ": indent class_path and init_args below the option that they are for"
    former = FORMER.get(kind, {})
    close = list(dict.fromkeys(former.get(each, each) for each in closest(name, [*known, *former])))
    return suggestion(close) or _those_with(name, beside=kind)


def _those_with(option: str, *, beside: str) -> str:
    """An addition that names classes with an option, of the package that a class is offered by."""
    files = plugin_classes().get(beside, [])
    package = HOME / files[0].relative_to(HOME).parts[0] if files else None
    if package is None:
        return ""
    offered = re.findall(r"\w+", (package / "__init__.py").read_text(encoding="utf-8"))
    others = [each for each in plugin_classes() if each in offered and option in (options_of_plugin(each) or ())]
    return f"; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it" if 0 < len(others) < _FEW else ""


@cache
def plugin_classes() -> dict[str, list[Path]]:
    """Files of our plug-ins' classes, by name."""
    found: dict[str, list[Path]] = {}
    for package in PLUGINS:
        for file in sorted((HOME / package).rglob("*.py")):
            for name in _CLASS.findall(file.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(file)
    return found


@cache
def _trainer_sources() -> Sources:
    return Sources({**dict(read_modules(_TRAINER_FILES, HOME)), **dict(_lightning())})


def _lightning() -> Iterator[tuple[str, Module]]:
    spec = find_spec("lightning")  # without importing what is in it
    home = Path(str(spec.origin)).parent if spec and spec.origin else Path()
    files = (home / "pytorch" / name for name in _LIGHTNING_FILES)
    yield from read_modules((file for file in files if file.is_file()), home.parent)
