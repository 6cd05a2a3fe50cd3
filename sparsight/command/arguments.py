"""The command's arguments before anything heavy is imported: its verb, its config files, what they set back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any

from sparsight.common.disk.yaml_files import read_yaml, yaml_value
from sparsight.common.errors import ConfigurationError

OURS = ("export", "benchmark", "analyze", "inspect", "reformulate")  # verbs beside Lightning's
VERBS = ("fit", "validate", "test", "predict", *OURS, "compare", "list")
FILE_OPTIONS = ("-c", "--config")
CONFIG_OPTIONS = (*FILE_OPTIONS, "--trainer", "--model", "--data", "--trainer.callbacks", "--trainer.logger")
NAMED = ("last", "best", "hpc", "registry")  # checkpoints that are looked up
_NEAR = 0.8  # of 1: names of configs share their folder, so that all of them are alike


def check_arguments(arguments: Sequence[str]) -> None:
    """See that the verb is known, and that files named on the command line are there and configs can be read.

    Raises:
        ConfigurationError: The verb is unknown, a config file is no mapping of options in YAML, or a checkpoint or an
            evaluation to compare is not there.
        FileNotFoundError: A config file is not there.
    """
    verb = arguments[0]
    if not verb.startswith("-") and verb not in VERBS:
        raise ConfigurationError(f"there is no verb {verb!r}{did_you_mean(verb, VERBS)}; verbs are {', '.join(VERBS)}")
    for _, option, value in _config_options(arguments, CONFIG_OPTIONS):
        if _is_file_name(option, value):
            file = Path(find_config(value))
            if option in FILE_OPTIONS:
                read_yaml(file)
    for _, _, value in _config_options(arguments, ("--ckpt_path",)):
        check_checkpoint(value)
    if verb == "compare":
        for report in takewhile(lambda argument: not argument.startswith("-"), arguments[1:]):
            check_there("compare", report)


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
        ConfigurationError: It is not; the message names those beside it that are nearly called so.
    """
    path = Path(value).expanduser()
    try:
        if path.exists():
            return
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:
        raise ConfigurationError(f"{key}: {value!r} cannot be read: {error.strerror}") from error
    close = [str(path.with_name(name)) for name in closest(path.name, beside)]
    raise ConfigurationError(f"{key}: {value!r} does not exist{suggestion(close)}")


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
    raise FileNotFoundError(f"no config {name!r}; shipped are: {', '.join(known)}")


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Replace config names on the command line by the files they mean; class names and inline values stay."""
    resolved = list(arguments)
    for position, option, value in _config_options(arguments, CONFIG_OPTIONS):
        if _is_file_name(option, value):
            path = find_config(value)
            resolved[position] = path if resolved[position] == value else f"{option}={path}"
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


def did_you_mean(name: str, known: Sequence[str], *, cutoff: float = 0.6) -> str:
    """An addition to a message that names those of ``known`` that are nearly called so; empty if there are none."""
    return suggestion(closest(name, known, cutoff=cutoff))


def closest(name: str, known: Sequence[str], *, cutoff: float = 0.6) -> list[str]:
    """The two of ``known`` that are most nearly called so; letter case does not count."""
    lower: dict[str, str] = {}
    for each in known:
        lower.setdefault(each.lower(), each)
    return [lower[each] for each in get_close_matches(name.lower(), lower, n=2, cutoff=cutoff)]


def suggestion(names: Sequence[str]) -> str:
    """An addition to a message that names what may have been meant; empty if there is nothing."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _beside(name: str) -> list[str]:
    """Files in the folder that a path names, as that path would name them."""
    try:
        files = [path for path in Path(name).parent.iterdir() if path.suffix in (".yaml", ".yml", ".json")]
    except OSError:
        return []
    return [path.as_posix() for path in files]


def _config_options(arguments: Sequence[str], options: Sequence[str]) -> Iterator[tuple[int, str, str]]:
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
