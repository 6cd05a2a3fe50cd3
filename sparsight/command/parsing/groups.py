"""A value that was given where a group of options is asked for, such as a number for ``model.sampling``."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass

from sparsight.common.names import named

LEVEL = re.compile(r'^( *)Parser key "(\w+)":', re.MULTILINE)
OWNER = re.compile(r"Problem with given class_path '([\w.]+)'")
NO_FILE = re.compile(r'Parser key "(\w+)": Unable to load config "(.*)"')
NO_GROUP = re.compile(
    r"Subtypes: \[<class '([\w.]+)'>, <class 'NoneType'>\]\s+Errors:\s+- (?:Not a valid subclass of|Unexpected import "
    r"path format|Expected a dot import path string).*?Given value: (.*?)$",
    re.MULTILINE | re.DOTALL,
)


def value_for_group(message: str) -> str | None:
    """What to say if a plain value stands where options of a dataclass are asked for; none if something else is wrong.

    Args:
        message: What jsonargparse says.
    """
    if (found := NO_FILE.search(message)) and (owner := OWNER.findall(message[: found.start()])):
        option = inspect.signature(named(owner[-1])).parameters.get(found[1])
        kind = None if option is None else type(option.default)
    elif found := NO_GROUP.search(message):
        kind = named(found[1])
    if found is None or not isinstance(kind, type) or not is_dataclass(kind):
        return None
    key = ".".join(_keys(message[: found.start()]))
    options = ", ".join(f"--{key}.{name}" for name in inspect.signature(kind).parameters)
    return f"{key}: {found[2]} is given, where options are asked for: {options}"


def _keys(text: str) -> list[str]:
    """Keys under which a text ends, outermost first."""
    levels: list[tuple[int, str]] = []
    for indent, key in LEVEL.findall(text):
        levels = [*(level for level in levels if level[0] < len(indent)), (len(indent), key)]
    return [key for _, key in levels]
