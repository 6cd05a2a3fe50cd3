"""Options that are null where nothing may be: the parser lets them through, and whoever computes with them fails."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from sparsight.command.config_keys import Place
from sparsight.command.startup import PLUGINS
from sparsight.common.errors import ConfigurationError
from sparsight.common.names import named

OURS = ("sparsight", *PLUGINS)
UNIONS = (Union, type(int | None))


def check_nulls(part: Place) -> None:
    """Refuse null for an option of a class of ours that has a default and takes no null, and below such options.

    Raises:
        ConfigurationError: There is one.
    """
    kind = named(part.kind) if part.kind else None
    if isinstance(kind, type) and kind.__module__.partition(".")[0] in OURS:
        _check(part.key, kind, part.options)


def _check(key: str, kind: type, options: Mapping[str, Any]) -> None:
    for name, hint, default in _taken(kind):
        if name not in options:
            continue
        value, place = options[name], f"{key}.{name}"
        fixed = default is not None and default is not inspect.Parameter.empty
        if value is None and fixed and not _takes_none(hint):
            meant = f", which means {default!r}" if isinstance(default, (bool, int, float, str)) else ""
            raise ConfigurationError(f"{place} is null, which it cannot be: leave it out{meant}")
        for inner in _dataclasses(hint):
            for where, each in [(place, value)] if not isinstance(value, list) else _entries(place, value):
                if isinstance(each, Namespace) and "class_path" not in each:
                    _check(where, inner, vars(each))


def _taken(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Options of a class: name, type and default."""
    with suppress(NameError, TypeError, ValueError):  # of types that are imported for checkers alone
        hints = get_type_hints(inspect.unwrap(kind.__init__))  # type: ignore[misc]
        for name, parameter in inspect.signature(kind).parameters.items():
            if name in hints:
                yield name, hints[name], parameter.default


def _takes_none(hint: Any) -> bool:
    if get_origin(hint) in UNIONS:
        return any(_takes_none(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return None in get_args(hint)
    return hint in (Any, object, None, type(None)) or not isinstance(get_origin(hint) or hint, type)


def _entries(place: str, values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{place}.{position}", each) for position, each in enumerate(values)]


def _dataclasses(hint: Any) -> list[type]:
    """Those that a type names, in lists and beside others, too."""
    if isinstance(hint, type) and is_dataclass(hint):
        return [hint]
    return [found for each in get_args(hint) for found in _dataclasses(each)]
