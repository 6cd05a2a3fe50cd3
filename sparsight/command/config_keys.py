"""Which key of a configuration an error is about: found by the object that was at work when it was raised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from types import TracebackType
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from sparsight.common.names import named

_SIMPLE = (str, int, float, bool, type(None))
_DEVICES = ("accelerator", "devices", "strategy", "precision", "num_nodes")
_OPTION_AT_START = re.compile(r"[`'\"]?([A-Za-z]\w*)[`'\"]?(?=[ :=.])")


@dataclass(frozen=True)
class Place:
    """A part of a configuration.

    Attributes:
        key: Dotted, without ``init_args``; positions in lists are numbers.
        kind: Path of its class; empty for options of a dataclass.
        options: Its options and their values.
    """

    key: str
    kind: str
    options: Mapping[str, Any]


def place_of(trace: TracebackType | None, config: Any) -> Place | None:
    """The part of a configuration whose object was at work, the innermost first; none if there is none.

    Args:
        trace: Of the error.
        config: Nested namespaces and lists, as parsed.
    """
    if config is None:
        return None
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    parts = list(parts_of(config))
    for frame in reversed(frames):
        worker = frame.f_locals.get("self")
        if isinstance(worker, Trainer) or "accelerator_connector" in frame.f_code.co_filename:
            return Place("trainer", "Trainer", _plain(config.get("trainer", {})))
        for each in (worker, _own(worker).get("source")):  # what reads a source is in no configuration, the source is
            found = [part for part in parts if _is_of(part, each)]
            if found:
                known = {**frame.f_locals, **_own(each)}
                return max(found, key=lambda part: _agreement(part, known))
    return None


def named_key(text: str, place: Place | None, error: BaseException) -> str:
    """A message with the key that it is about in front.

    Args:
        text: The message.
        place: What was at work.
        error: Whose message it is.
    """
    if place is None or f"{place.key}." in text:
        return text
    if place.kind == "Trainer" and "accelerator" in _file(error):
        named = [each for each in _DEVICES if f"{each}=" in text]
        named = named or [each for each in _DEVICES if re.search(rf"\b{each}\b", text)]
        words = {each: value for each in _DEVICES if isinstance(value := place.options.get(each), str)}
        told = [each for each, value in words.items() if value != "auto" and value in text]
        which = next(iter([each for each in told if each in named] or named or told), _DEVICES[0])
        return f"trainer.{which} is {place.options.get(which)!r}: {text}"
    start = _OPTION_AT_START.match(text)
    if start and start[1] in place.options:
        return f"{place.key}.{text.lstrip('`').replace('`', '', 1) if text.startswith('`') else text}"
    option = _option_in(text, place)
    if option is not None:
        return f"{place.key}.{option}: {text}"
    if place.kind == "Trainer":  # which is at work whenever anything is
        return text
    kind = place.kind.rpartition(".")[2]
    return f"{place.key}{kind and f' ({kind})'}: {text}"


def _option_in(text: str, place: Place) -> str | None:
    """The option that a text names, or whose value it tells, if it is the only one."""
    quoted = {name for name in place.options if re.search(rf"[`'\"]{name}\b|\b{name}=", text)}
    named = quoted or {name for name in place.options if "_" in name and _holds_word(text, name)}
    if len(named) == 1:
        return named.pop()
    if place.kind == "Trainer":  # its values are words such as auto and runs, which stand in any message
        return None
    told = {
        name
        for name, value in place.options.items()
        if isinstance(value, str) and len(value) > 2 and _holds_word(text, value)
    }
    return told.pop() if len(told) == 1 and not named else None


def _holds_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w/.-]){re.escape(word)}(?![\w/-])", text) is not None


def _file(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def parts_of(node: Any, key: str = "") -> Iterator[Place]:
    """All mappings in a configuration; those with a class are named by it."""
    if isinstance(node, (list, tuple)):
        for position, each in enumerate(node):
            yield from parts_of(each, f"{key}.{position}")
        return
    options = _plain(node)
    if "class_path" in options:
        kind = str(options["class_path"])
        options = _plain(options.get("init_args") or {})
        yield Place(key, kind, options)
    elif options and key:
        yield Place(key, "", options)
    for name, each in options.items():
        yield from parts_of(each, f"{key}.{name}" if key else name)


def _plain(node: Any) -> dict[str, Any]:
    """A namespace's or mapping's own entries; empty for all else."""
    found = node if isinstance(node, Mapping) else vars(node) if isinstance(node, Namespace) else {}
    return {name: value for name, value in found.items() if isinstance(name, str) and not name.startswith("__")}


def _is_of(part: Place, worker: Any) -> bool:
    if worker is None or isinstance(worker, type):
        return False
    if part.kind:
        return type(worker).__name__ == part.kind.rpartition(".")[2] and named(part.kind) is type(worker)
    if not is_dataclass(worker):
        return False
    fields = set(worker.__dataclass_fields__)
    return set(part.options) <= fields and _agreement(part, vars(worker)) == sum(
        isinstance(value, _SIMPLE) for value in part.options.values()
    )


def _own(worker: Any) -> dict[str, Any]:
    try:
        return vars(worker)
    except TypeError:  # one with slots
        return {}


def _agreement(part: Place, known: Mapping[str, Any]) -> int:
    """How many options of a part have the value that is known of an object."""
    return sum(
        isinstance(value, _SIMPLE) and name in known and (known[name] == value or str(known[name]) == str(value))
        for name, value in part.options.items()
    )
