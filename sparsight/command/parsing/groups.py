"""A plain value where a class or a group of options is asked for, such as a number for ``model.sampling``."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

from sparsight.common.names import named

LEVEL = re.compile(r'^( *)Parser key "([\w.]+)":', re.MULTILINE)
OWNER = re.compile(r"Problem with given class_path '([\w.]+)'")
NO_FILE = re.compile(r'Parser key "(\w+)": Unable to load config "(.*)"')
NAME = re.compile(r"[A-Za-z_][\w.]*")
_MOST_NAMES = 8
NO_GROUP = re.compile(
    r"Subtypes: \[<class '([\w.]+)'>, <class 'NoneType'>\]\s+Errors:\s+- (?:Not a valid subclass of|Unexpected import "
    r"path format|Expected a dot import path string).*?Given value: (.*?)$",
    re.MULTILINE | re.DOTALL,
)


def value_for_group(message: str) -> str | None:
    """What to say if a plain value stands where options of a dataclass, or a class, are asked for; none otherwise.

    Args:
        message: What jsonargparse says.
    """
    if (found := NO_FILE.search(message)) and (owner := OWNER.findall(message[: found.start()])):
        option = inspect.signature(named(owner[-1])).parameters.get(found[1])
        kind = None if option is None else type(option.default)
    elif found := NO_GROUP.search(message):
        kind = named(found[1])
    if found is None or not isinstance(kind, type):
        return None
    key = ".".join(_keys(message[: found.start()]))
    value = " ".join(found[2].split()) or "''"
    if not is_dataclass(kind):
        return None if NAME.fullmatch(value) else asks_for_class(key, kind, value)
    options = ", ".join(f"--{key}.{name}" for name in inspect.signature(kind).parameters)
    return f"{key}: {value} is given, where options are asked for: {options}"


def asks_for_class(key: str, kind: type[Any], value: str) -> str:
    """What to say if a plain value stands where a class of a kind is asked for."""
    names = ", ".join(list(dict.fromkeys(each.__name__ for each in _last_below(kind)))[:_MOST_NAMES])
    return f"{key}: {value} is given, where a class is asked for, such as {names}: --{key} CLASS, --{key}.OPTION VALUE"


def _last_below(kind: type[Any]) -> list[type[Any]]:
    """Subclasses that have none themselves."""
    return [last for each in kind.__subclasses__() for last in _last_below(each) or [each]]


def _keys(text: str) -> list[str]:
    """Keys under which a text ends, outermost first."""
    levels: list[tuple[int, str]] = []
    for indent, key in LEVEL.findall(text):
        levels = [*(level for level in levels if level[0] < len(indent)), (len(indent), key)]
    return [key for _, key in levels]
