"""Names of options and classes that nothing has, found before anything heavy is imported.

What a verb, the trainer and our plug-ins take is read from their source. The parser refuses the same mistakes, and more
of them, but needs ten seconds to come to them; what cannot be told from source is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsight.command.arguments import FILE_OPTIONS, INCLUDE, VERBS, given_options, resolve_configs
from sparsight.command.checks.input_paths import ASKS_ONLY, classes_in
from sparsight.command.options import (
    BELOW_CLASS,
    OTHERS,
    close_options,
    options_in_group,
    options_of_plugin,
    options_of_trainer,
    options_of_verb,
    plugin_classes,
)
from sparsight.command.plugins import HOME
from sparsight.command.startup import PLUGINS
from sparsight.common.disk.yaml_files import read_yaml
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import closest, did_you_mean, suggestion

BASES = {"model": "lightning_modules", "data": "datamodules"}  # packages whose classes may be given by bare name
GROUPS = (*BASES, "trainer")  # options with options of their own
SHORT = ("-c", "-h")
_NEAR, _VERY_NEAR = 0.6, 0.8  # of 1: a bare name may also be Lightning's


def check_option_names(arguments: Sequence[str]) -> None:
    """Refuse options, keys of config files and classes that there are not.

    Args:
        arguments: Of the command, its verb first.

    Raises:
        ConfigurationError: There is one; the message has the close ones.
    """
    verb, *rest = arguments
    if verb in OTHERS:
        _check_of_other(verb, rest)
    if verb not in VERBS or verb in OTHERS:
        return
    _check_first(verb, rest)
    for argument in rest:
        if argument.startswith("-") and len(argument) > 1 and not _is_number(argument):
            _check_option(verb, argument.partition("=")[0])
    _check_values(verb, rest)
    resolved = resolve_configs(arguments)
    contents = [(file, read_yaml(Path(file))) for _, _, file in given_options(resolved, FILE_OPTIONS)]
    for file, content in contents:
        _check_file(file, content)
    below = _classes_by_place(rest, [content for _, content in contents])
    for group, package in BASES.items():
        classes = [value for _, _, value in given_options(resolved, (f"--{group}", f"--{group}.class_path"))]
        for value in classes:
            _check_class(group, value, package)  # passes over what is no name of a class
        classes += [kind for _, content in contents for kind in _class_of(content.get(group))]
        if len({each.rpartition(".")[2] for each in classes}) == 1:
            for keys in _below(group, rest):
                _check_way((group,), classes[0], keys, below)
            for file, content in contents:
                part = content.get(group)
                if isinstance(part, Mapping) and "class_path" not in part:  # another config says it
                    options = part.get("init_args", part)
                    _check_classes(file, {group: {"class_path": classes[0], "init_args": options}})
    _check_model(verb, rest)


def _check_first(verb: str, rest: Sequence[str]) -> None:
    if rest and not rest[0].startswith("-"):
        raise ConfigurationError(
            f"{verb}: {rest[0]!r} belongs to no option; did you mean --config {rest[0]}?; see sparsight {verb} --help"
        )


def _check_of_other(verb: str, rest: Sequence[str]) -> None:
    """Options of a verb that takes no config; they may be cut short."""
    known = [*OTHERS[verb], "help"]
    for argument in rest:
        name = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and not any(each.startswith(name) for each in known):
            close = suggestion([f"--{each}" for each in closest(name, known)])
            raise ConfigurationError(f"{verb}: there is no option --{name}{close}; see sparsight {verb} --help")


def _check_values(verb: str, rest: Sequence[str]) -> None:
    """Refuse options without a value."""
    for argument, follower in zip(rest, [*rest[1:], "--"], strict=False):
        takes_next = argument.startswith("--") or argument in FILE_OPTIONS
        alone = takes_next and "=" not in argument and follower.startswith("--")
        if alone and not argument.startswith(ASKS_ONLY) and not argument.endswith(".help"):
            raise ConfigurationError(f"{verb}: {argument} needs a value; see sparsight {verb} --help")


def _check_model(verb: str, rest: Sequence[str]) -> None:
    """Refuse a command that names no model, and no file that could."""
    named = any(each.partition("=")[0] in ("--model", "--model.class_path") for each in rest)
    if not named and not any(each.startswith((*ASKS_ONLY, *FILE_OPTIONS)) or ".help" in each for each in rest):
        raise ConfigurationError(
            f"{verb}: no model is given: add --config CONFIG, such as experiment/quickstart, or --model CLASS and "
            f"--data CLASS; see sparsight {verb} --help"
        )


def _check_option(verb: str, option: str) -> None:
    name, known = option.lstrip("-").rstrip("+"), [*options_of_verb(verb), INCLUDE]
    group, dot, inner = name.partition(".")
    if position := next((part for part in inner.split(".") if part.isdecimal()), None):
        place = f"{group}.{inner.partition(f'.{position}')[0]}"
        raise ConfigurationError(
            f"{verb}: {option}: an entry of a list is not set by its number: give --{place} '[...]' as a whole, or "
            "write it in a config"
        )
    dashes = len(option) - len(option.lstrip("-"))
    if dashes == 1 and (option in SHORT or name not in known):
        return  # may be a short option with its value
    if dashes != 2 or group not in {each.partition(".")[0] for each in known}:
        close = [f"--{each}{dot}{inner}" for each in closest(group, known)]
        close = [f"--trainer.{name}"] if name in options_of_trainer() else close
        raise ConfigurationError(f"{verb}: there is no option {option}{suggestion(close)}; see sparsight {verb} --help")
    below = [each for each in known if each.startswith(f"{group}.")]  # all that this verb has there
    if dot and below and name not in below:
        meant = suggestion([f"--{each}" for each in below])
        raise ConfigurationError(f"{verb}: there is no option {option}{meant}; see sparsight {verb} --help")
    if group == "trainer" and dot:
        _check_trainer(inner.removeprefix("init_args.").partition(".")[0], "")


def _check_trainer(name: str, where: str) -> None:
    known = options_of_trainer()
    if name not in (*known, *BELOW_CLASS):
        raise ConfigurationError(f"{where}trainer.{name}: the trainer has no such option{did_you_mean(name, known)}")


def _check_file(file: str, content: Mapping[str, Any]) -> None:
    """Keys at the top of a config file, those of the trainer, and those of our classes, wherever they stand."""
    known = {each.partition(".")[0] for verb in VERBS if verb not in OTHERS for each in options_of_verb(verb)}
    for key in map(_name, content):
        if key not in (*known, INCLUDE, *VERBS):
            raise ConfigurationError(f"{file}: there is no option {key}{did_you_mean(key, sorted(known))}")
    trainer = content.get("trainer")
    if isinstance(trainer, Mapping) and "class_path" not in trainer:
        for key in trainer:
            _check_trainer(_name(key), f"{file}: ")
    if "model" in content and content["model"] is None:
        raise ConfigurationError(f"{file}: model is null: name a class and its options, or leave the key out")
    for group in GROUPS:
        _check_beside_class(content.get(group), f"{file}: {group}")
    _check_classes(file, {group: content.get(group) for group in GROUPS})


def _check_beside_class(node: Any, place: str) -> None:
    """Refuse what stands beside a class and its options, wherever there is a class."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            _check_beside_class(each, f"{place}.{number}")
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if "class_path" in node and key not in BELOW_CLASS:
                meant = suggestion(closest(str(key), BELOW_CLASS, cutoff=_VERY_NEAR))
                raise ConfigurationError(
                    f"{place}.{key} stands beside class_path{meant or ': options of a class stand below init_args'}"
                )
            _check_beside_class(value, f"{place}.{_name(key)}")


def _check_classes(file: str, content: Mapping[str, Any]) -> None:
    for keys, class_path, options in classes_in(content, ()):
        place = f"{file}: {'.'.join(keys)}"
        _check_class(place, class_path, BASES.get(keys[0], "") if len(keys) == 1 else "")
        _check_options(place, class_path, map(_name, options))
        for name, given in options.items():
            for each in given if isinstance(given, list) else [given]:
                if isinstance(each, Mapping) and "class_path" not in each:
                    _check_group(f"{place}.{_name(name)}", class_path, (_name(name),), each)


def _check_class(place: str, class_path: str, package: str) -> None:
    """See that a class of ours is there: by its package, or where bare names are ours, by what it is nearly called."""
    start, _, name = class_path.rpartition(".")
    package = start or package
    if package not in PLUGINS or not name.isidentifier():
        return
    home = HOME / package
    own = [each for each, files in plugin_classes().items() if any(home in file.parents for file in files)]
    close = closest(name, [each for each in own if not each.startswith("_")], cutoff=_NEAR if start else _VERY_NEAR)
    offered = re.search(rf"\b{name}\b", (home / "__init__.py").read_text(encoding="utf-8"))  # may lie elsewhere
    if name not in plugin_classes() and not offered and (start or close):
        found = suggestion([f"{start}.{each}" if start else each for each in close])
        raise ConfigurationError(f"{place}: there is no class {class_path!r}{found}")


def _check_options(place: str, class_path: str, names: Iterable[str]) -> None:
    known = options_of_plugin(class_path)
    for name in names:
        if known is not None and name not in known:
            kind = class_path.rpartition(".")[2]
            raise ConfigurationError(f"{place}.{name}: {kind} has no such option{close_options(kind, name, known)}")


def _check_group(place: str, class_path: str, way: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """See that what an option of a class is made of has such options itself, and what these are made of."""
    group = options_in_group(class_path, way)
    if group is None:
        return
    kind, known = group
    for key, value in given.items():
        name = _name(key)
        if name not in known:
            raise ConfigurationError(f"{place}.{name}: {kind} has no such option{did_you_mean(name, known)}")
        if isinstance(value, Mapping) and "class_path" not in value:
            _check_group(f"{place}.{name}", class_path, (*way, name), value)


def _check_way(
    place: tuple[str, ...], class_path: str, keys: Sequence[str], classes: Mapping[tuple[str, ...], set[str]]
) -> None:
    """Follow the keys of an option from a class downwards, as far as source and configs tell what stands there."""
    first, *rest = keys
    _check_options(".".join(place), class_path, [first])
    place = (*place, first)
    kinds = classes.get(place, set())
    if rest and len(kinds) == 1:
        _check_way(place, next(iter(kinds)), rest, classes)
    elif rest and not kinds:
        given: Any = {}
        for key in reversed(rest):
            given = {key: given}
        _check_group(".".join(place), class_path, (first,), given)


def _classes_by_place(
    arguments: Sequence[str], contents: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, ...], set[str]]:
    """Bare or full names of classes that configs and options give, by keys without ``init_args``."""
    found: dict[tuple[str, ...], set[str]] = {}
    for content in contents:
        for keys, kind, _ in classes_in({group: content.get(group) for group in BASES}, ()):
            found.setdefault(keys, set()).add(kind)
    for argument, follower in zip(arguments, [*arguments, ""][1:], strict=True):
        option, equals, value = argument.partition("=")
        keys = tuple(_name(each) for each in option.removeprefix("--").split(".") if each not in BELOW_CLASS)
        found.setdefault(keys, set()).add(value if equals else follower)
    return found


def _below(group: str, arguments: Sequence[str]) -> list[list[str]]:
    """Options of a class on the command line: the keys behind ``--model.``, but for those that may be left out."""
    start = f"--{group}."
    given = (each.partition("=")[0].removeprefix(start) for each in arguments if each.startswith(start))
    ways = ([_name(key) for key in each.split(".") if key not in BELOW_CLASS] for each in given)
    return [keys for keys in ways if keys and "help" not in keys]


def _class_of(part: Any) -> list[str]:
    """The class that a config gives, if it gives one."""
    given = part.get("class_path") if isinstance(part, Mapping) else part
    return [given] if isinstance(given, str) else []


def _name(key: object) -> str:
    return str(key).rstrip("+")


def _is_number(argument: str) -> bool:
    return argument[1:2].isdigit() or argument[1:2] == "."
