"""Plain data: what YAML, JSON and checkpoints hold without code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

Thing = TypeVar("Thing")


@runtime_checkable
class Nested(Protocol):
    """A namespace of jsonargparse."""

    def as_dict(self) -> dict[str, Any]:
        """It, and what lies in it, as dictionaries."""
        ...


def is_plain(value: Any) -> bool:
    """Whether a value is made of nothing but numbers, text, lists and mappings."""
    if isinstance(value, Mapping):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def groups_of(kind: type[Any]) -> dict[str, Any]:
    """Defaults of those options of a class, and of those that it is derived from, that are dataclasses."""
    found: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        if "__init__" in vars(each):
            options = inspect.signature(vars(each)["__init__"]).parameters
            found |= {name: option.default for name, option in options.items() if is_dataclass(option.default)}
    return found


def plain_groups(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a class's options that ``groups_of`` tells, as mappings; not those that hold more than plain data."""
    given = {name: options[name] for name in groups_of(kind) if is_dataclass(options.get(name))}
    found = {name: asdict(value) for name, value in given.items()}
    return {name: value for name, value in found.items() if is_plain(value)}


def replaced(thing: Thing, options: Mapping[str, Any]) -> Thing:
    """A dataclass with other values of some fields, of which those that are dataclasses may be mappings."""
    hints = get_type_hints(type(thing))
    given = dict(options)
    for name, value in given.items():
        kinds = [each for each in (hints[name], *get_args(hints[name])) if is_dataclass(each)]
        if kinds and isinstance(value, Mapping):
            given[name] = kinds[0](**value)  # type: ignore[operator]
    return replace(thing, **given)  # type: ignore[type-var]


def setting(config: Any, name: str, default: Any = None) -> Any:
    """What a configuration of another library says.

    Args:
        config: Of transformers or diffusers, or an object made by one.
        name: Of the option.
        default: What counts where it is not declared.
    """
    return getattr(config, name, default)  # which options a model has is decided by its class, and by a version of that


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, namespaces and lists as ``{"a.b.0": value}``."""
    if isinstance(tree, Nested):
        tree = tree.as_dict()
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
