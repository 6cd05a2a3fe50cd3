"""The command's arguments before anything heavy is imported: its verb, its config files, what they set back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from sparsight.common.disk.yaml_files import read_yaml, yaml_value
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import beside, closest, did_you_mean, suggestion

OURS = ("check", "export", "benchmark", "analyze", "inspect", "reformulate")  # verbs beside Lightning's
VERBS = ("fit", "validate", "test", "predict", *OURS, "evaluate", "compare", "report", "schema", "list", "completion")
FILE_OPTIONS = ("-c", "--config")
CONFIG_OPTIONS = (*FILE_OPTIONS, "--trainer", "--model", "--data", "--trainer.callbacks", "--trainer.logger")
WITHOUT_DATA = ("export", "benchmark")  # verbs that open no data
WITHOUT_CONFIG = ("evaluate",)  # a verb whose --data is a folder, and none of a config
NAMED = ("last", "best", "hpc", "registry")  # checkpoints that are looked up
MEANT = {  # verbs that others would use
    "train": "fit",
    "distill": "fit",
    "tune": "fit",
    "prune": "fit",
    "eval": "test",
    "evaluate": "test",
    "sample": "predict",
    "generate": "predict",
}
INCLUDE = "include"  # the key of a config under which it names those that it is laid over
_NEAR = 0.8  # of 1: names of configs share their folder, so that all of them are alike


def check_arguments(arguments: Sequence[str]) -> None:
    """See that the verb is known, and that files named on the command line are there and configs can be read.

    Raises:
        ConfigurationError: The verb is unknown, a config file is no mapping of options in YAML, or a checkpoint or an
            evaluation to compare is not there.
        FileNotFoundError: A config file is not there.
    """
    verb = arguments[0]
    option = verb.partition("=")[0]
    if option.startswith("-") and option not in (*FILE_OPTIONS, "-h", "--help", "--version"):
        close = did_you_mean(option, ("--help", "--version", "--config"))
        raise ConfigurationError(
            f"there is no option {option!r} before a verb{close}; options come after it; verbs are {', '.join(VERBS)}"
        )
    if not verb.startswith("-") and verb not in VERBS:
        close = suggestion([MEANT.get(each, each) for each in closest(verb, [*VERBS, *MEANT])][:1])
        raise ConfigurationError(f"there is no verb {verb!r}{close}; verbs are {', '.join(VERBS)}")
    resolve_configs(arguments)
    for _, _, value in given_options(arguments, ("--ckpt_path",)):
        check_checkpoint(value)
    if verb in ("compare", "report"):
        for place in takewhile(lambda argument: not argument.startswith("-"), arguments[1:]):
            check_there(verb, place)


def check_checkpoint(value: str) -> None:
    """See that a checkpoint that is named by its path is there.

    Raises:
        ConfigurationError: It is not.
    """
    if value not in (*NAMED, "null") and "://" not in value:
        check_there("ckpt_path", value)


def check_there(key: str, value: str) -> None:
    """See that a file or folder is there.

    Raises:
        ConfigurationError: None is named, or it is not; the message names those beside it that are nearly called so.
    """
    check_given(key, value)
    path = Path(value).expanduser()
    try:
        if path.exists():
            return
    except OSError as error:
        raise ConfigurationError(f"{key}: {value!r} cannot be read: {error.strerror}") from error
    raise ConfigurationError(f"{key}: {value!r} does not exist{suggestion(beside(path))}")


def check_given(key: str, value: str) -> None:
    """Refuse a blank where a path is expected, such as what a shell makes of a variable that is not set.

    Raises:
        ConfigurationError: It is one, which would stand for the current folder, or be passed over.
    """
    if not value.strip():
        raise ConfigurationError(f"{key} is empty: give a path, or leave it out")


def config_folders() -> list[Path]:
    """Where configs named without a path are looked up: the current folder, the repository, the installed package."""
    package = Path(__file__).parents[1]
    return [Path("."), Path("configs"), package.parent / "configs", package / "configs"]


def find_config(name: str) -> str:
    """The file behind a config's name: ``experiment/quickstart`` is found from anywhere.

    Raises:
        FileNotFoundError: No such file; the message names those that are nearly called so, or all of that kind.
    """
    candidates = [folder / f"{name}{suffix}" for folder in config_folders() for suffix in ("", ".yaml")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return str(found)
    if Path(name).is_dir():
        raise FileNotFoundError(f"config {name!r} is a folder; name a file in it")
    folders = config_folders()[1:]
    known = sorted({path.relative_to(f).with_suffix("").as_posix() for f in folders for path in f.rglob("*.yaml")})
    if close := did_you_mean(name, [*known, *_beside(name)], cutoff=_NEAR):
        raise FileNotFoundError(f"no config {name!r}{close}")
    ends = {each.rpartition("/")[2]: each for each in known}
    if meant := closest(name, list(ends), cutoff=_NEAR):
        raise FileNotFoundError(f"no config {name!r}{suggestion([ends[each] for each in meant])}")
    if Path(name).suffix in (".yaml", ".yml"):  # a path, not a name
        missing = next(each for each in (*reversed(Path(name).parents), Path(name)) if not each.exists())
        raise FileNotFoundError(f"no config {name!r}: there is no {missing}")
    raise FileNotFoundError(f"no config {name!r}; shipped are: {', '.join(known)}")


def included(file: Path, *, above: tuple[Path, ...] = ()) -> list[Path]:
    """The configs that a config is laid over, in the order in which they are read, each once.

    Args:
        file: The config. What it names under ``include`` lies beside it, or is found by ``find_config``.
        above: Files that include this one.

    Raises:
        ConfigurationError: A file is no mapping of options in YAML, ``include`` is no list of names, or files include
            each other in a circle.
        FileNotFoundError: One is not there.
    """
    names = read_yaml(file).get(INCLUDE) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{file}: {INCLUDE} is {names!r}; allowed: a list of names of configs")
    circle = [*above, file]
    found: list[Path] = []
    for name in names:
        beside = [path for path in (file.parent / name, file.parent / f"{name}.yaml") if path.is_file()]
        try:
            part = beside[0] if beside else Path(find_config(name))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{file}: {INCLUDE}: {error}") from error
        if part.resolve() in [each.resolve() for each in circle]:
            told = " includes ".join(str(each) for each in (*circle, part))
            raise ConfigurationError(f"{told}: leave one of them out")
        found += [each for each in (*included(part, above=tuple(circle)), part) if each not in found]
    return found


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Replace config names on the command line by the files they mean, after those that these include.

    Class names and inline values stay. What is included twice is laid below once, at the first place.

    Raises:
        ConfigurationError: A config file is no mapping of options in YAML, or files include each other in a circle.
        FileNotFoundError: A config file is not there.
    """
    if arguments and arguments[0] in WITHOUT_CONFIG:
        return list(arguments)
    places = {position: (option, value) for position, option, value in given_options(arguments, CONFIG_OPTIONS)}
    resolved: list[str] = []
    laid: set[Path] = set()
    for position, argument in enumerate(arguments):
        option, value = places.get(position, ("", ""))
        if argument.partition("=")[0] == f"--{INCLUDE}":
            raise ConfigurationError(f"{INCLUDE} stands in config files: on the command line give --config")
        if not option or not _is_file_name(option, value):
            resolved.append(argument)
            continue
        if argument == value:
            resolved.pop()  # the option, which comes back with every file
        path = find_config(value)
        below = included(Path(path)) if option in FILE_OPTIONS else []
        for file in [*(each for each in below if each.resolve() not in laid), Path(path)]:
            resolved += [option, str(file)] if argument == value else [f"{option}={file}"]
            laid.add(file.resolve())
    return resolved


def set_back(arguments: Sequence[str]) -> list[str]:
    """What to tell of options that a config file given after them sets to another value.

    Args:
        arguments: Of the command, with config files resolved.
    """
    told = []
    given: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        follows = arguments[position + 1] if position + 1 < len(arguments) else ""
        value = value if equals else follows
        if option in FILE_OPTIONS and value:
            content = read_yaml(Path(value))
            for earlier, wanted in list(given.items()):
                found = _lookup(content, earlier.removeprefix("--").split("."))
                if found and found[0] != yaml_value(wanted):
                    del given[earlier]
                    told.append(
                        f"{earlier} {wanted} is set back to {_short(found[0])} by {value}, which comes after it: give "
                        "the option after --config to keep it"
                    )
        elif option.startswith("--") and not option.endswith("+"):
            given[option] = value
    return told


def read_config(name: str) -> dict[str, Any]:
    """What a config says together with those that it includes, as plain data.

    Raises:
        ConfigurationError: One of them is no mapping of options in YAML, or they include each other in a circle.
        FileNotFoundError: One is not there.
    """
    file = Path(find_config(name))
    content: dict[str, Any] = {}
    for each in [*included(file), file]:
        content = _laid_over(content, read_yaml(each))
    content.pop(INCLUDE, None)
    return content


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two configs as the command combines them: mappings by key, ``callbacks+`` appended, all else replaced."""
    found = dict(below)
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        found.pop("init_args", None)
    for key, value in above.items():
        there = found.get(key)
        if key.endswith("+"):
            found[key[:-1]] = [*found.get(key[:-1], []), *value]
        else:
            found[key] = _laid_over(there, value) if isinstance(value, dict) and isinstance(there, dict) else value
    return found


def _beside(name: str) -> list[str]:
    """Files in the folder that a path names, as that path would name them."""
    try:
        files = [path for path in Path(name).parent.iterdir() if path.suffix in (".yaml", ".yml", ".json")]
    except OSError:
        return []
    return [path.as_posix() for path in files]


def given_options(arguments: Sequence[str], options: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Position, option and value where one of ``options`` is given a value."""
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in options:
            continue
        if equals:
            yield position, option, value
        elif position + 1 < len(arguments):
            yield position + 1, option, arguments[position + 1]


def _is_file_name(option: str, value: str) -> bool:
    looks_like_path = "/" in value or value.endswith((".yaml", ".yml", ".json"))
    return option in FILE_OPTIONS or (looks_like_path and not value.lstrip().startswith(("{", "[")))


def _lookup(content: Any, keys: Sequence[str]) -> tuple[Any] | None:
    """The value under dotted keys, which leave ``init_args`` out; none where the file does not say."""
    if not keys:
        return (content["class_path"],) if isinstance(content, Mapping) and "class_path" in content else (content,)
    if not isinstance(content, Mapping):
        return None
    if keys[0] in content:
        return _lookup(content[keys[0]], keys[1:])
    return _lookup(content["init_args"], keys) if "init_args" in content else None


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
