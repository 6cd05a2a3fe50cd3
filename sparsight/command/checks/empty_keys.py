"""Keys with nothing below them: the parser passes over them, so that a misspelt one would go unnoticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from sparsight.command.arguments import FILE_OPTIONS
from sparsight.command.options import BELOW_CLASS
from sparsight.common.disk.yaml_files import read_yaml, yaml_value
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import did_you_mean


def check_empty_keys(arguments: Sequence[str], config: Any) -> None:
    """Refuse keys whose value is an empty mapping and that the parsed configuration does not have.

    Args:
        arguments: Of the command, with config files resolved.
        config: Of the verb, as parsed.

    Raises:
        ConfigurationError: There is one; the message names file and key.
    """
    for source, key, content in _given(arguments):
        place = config
        for name in filter(None, key.split(".")):
            place = _below(place, name)
        for keys, known in _unknown(content, place):
            name, path = keys[-1], ".".join(filter(None, (key, *(each for each in keys if each != "init_args"))))
            raise ConfigurationError(f"{source}: {path}: there is no such option{did_you_mean(name, known)}")


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Where something stands, the key it is for, and what it is: config files, and mappings on the command line."""
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        if option in FILE_OPTIONS and value:
            yield value, "", read_yaml(Path(value))
        elif option.startswith("--") and "{" in value:
            yield option, option.lstrip("-").rstrip("+"), yaml_value(value)


def _unknown(content: Any, place: Any) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Keys that lead to empty mappings alone and are not at the place, each with those that are."""
    if isinstance(content, list):
        there = place if isinstance(place, list) else []
        for each in content:  # a list may have been added to another one
            found = [list(_unknown(each, other)) for other in there]
            if found and all(found):
                yield from found[0]
        return
    entries = _entries(place)
    if not isinstance(content, Mapping) or entries is None or _other_class(content, entries):
        return
    for key, value in content.items():
        name = str(key).rstrip("+")
        if name in entries or name in BELOW_CLASS:
            inner = ((keys, known) for keys, known in _unknown(value, entries.get(name)))
            yield from (((name, *keys), known) for keys, known in inner)
        elif _is_hollow(value):
            yield (name,), list(entries)


def _is_hollow(value: Any) -> bool:
    """Whether there is nothing but mappings in a mapping."""
    return isinstance(value, Mapping) and all(_is_hollow(each) for each in value.values())


def _other_class(content: Mapping[Any, Any], entries: Mapping[str, Any]) -> bool:
    """Whether a later file or option has put another class in this place."""
    names = [str(each.get("class_path", "")).rpartition(".")[2] for each in (content, entries)]
    return bool(names[0]) and names[0] != names[1]


def _below(place: Any, name: str) -> Any:
    entries = _entries(place) or {}
    if name in entries:
        return entries[name]
    return (_entries(entries.get("init_args")) or {}).get(name)


def _entries(place: Any) -> dict[str, Any] | None:
    if isinstance(place, Namespace):
        return dict(vars(place))
    return {str(key): value for key, value in place.items()} if isinstance(place, Mapping) else None
