"""Mixers that are parts of another one, and their form as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from blocks.base import CoreMixer, Site, TokenMixer

Part = Callable[[Site], TokenMixer]
"""Makes a part for a site."""

_INSIDE = __name__.removesuffix("blocks.parts")  # in an export, what stands in front of every module's name


def made_parts(owner: str, parts: Sequence[Part | Mapping[str, Any]], sites: Sequence[Site]) -> nn.ModuleList:
    """The parts of a mixer.

    Args:
        owner: Name of its class.
        parts: What makes each of them: a function of the site, or plain data as ``plain_part`` gives it.
        sites: The site of each.

    Raises:
        ValueError: There is no part, or one is no core mixer; the message names its position.
    """
    if not parts:
        raise ValueError(f"{owner} has no parts: name at least one core mixer")
    made = nn.ModuleList()
    for position, (part, site) in enumerate(zip(parts, sites, strict=True)):
        mixer = made_part(part, site, f"parts.{position} of {owner}")
        if not isinstance(mixer, CoreMixer):
            raise ValueError(
                f"parts.{position} of {owner} is {type(mixer).__name__}, which is no core mixer: a part takes queries, "
                "keys and values"
            )
        made.append(mixer)
    return made


def plain_part(mixer: Any) -> dict[str, Any]:
    """A part as plain data: the path of its class, and its options."""
    return {"class_path": _path(type(mixer)), "init_args": mixer.options}


def made_part(part: Part | Mapping[str, Any], site: Site, name: str) -> Any:
    """One mixer.

    Args:
        part: What makes it: a function of the site, or plain data as ``plain_part`` gives it.
        site: Its site.
        name: What it is called in messages.

    Raises:
        ValueError: It is neither, or names what is no mixer.
    """
    if not isinstance(part, Mapping):
        if not callable(part):
            raise ValueError(f"{name} is {part!r}: name a class by class_path and init_args")
        return part(site)
    unknown = part.keys() - {"class_path", "init_args"}
    if unknown or "class_path" not in part:
        raise ValueError(f"{name} has {', '.join(map(str, part)) or 'no keys'}: give class_path and init_args")
    # only what this process has imported already: plain data from elsewhere imports nothing
    kind = next((each for each in _kinds(TokenMixer) if _path(each) == part["class_path"]), None)
    if kind is None:
        raise ValueError(f"{name} is {part['class_path']!r}, which is no mixer, or of a module that is not imported")
    return kind(site, **part.get("init_args") or {})


def _kinds(base: Any) -> Iterator[type[TokenMixer]]:
    """A class and all that derive from it, the latest first."""
    for kind in reversed(base.__subclasses__()):
        yield from _kinds(kind)
    yield base


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix(_INSIDE)
