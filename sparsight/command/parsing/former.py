"""Configs and arguments may name options of a class as they were called before; see ``sparsight.common.moved``."""

from __future__ import annotations

import inspect
from typing import Any

from jsonargparse import Namespace, _typehints

from sparsight.common.moved import current_option, move_options
from sparsight.common.names import named

_adapted = _typehints.adapt_class_type


def follow_former_options() -> None:
    """From now on parsers take old options of a class for the new ones, with a warning."""
    _typehints.adapt_class_type = _adapt


def _adapt(value: Any, *args: Any, **options: Any) -> Any:
    kind = named(value["class_path"]) if isinstance(value, Namespace) else None
    if inspect.isclass(kind):
        given = value.get("init_args")
        if isinstance(given, _typehints.NestedArg):
            value["init_args"] = given._replace(key=current_option(kind, given.key))
        elif isinstance(given, Namespace):
            move_options(kind, vars(given))
    return _adapted(value, *args, **options)
