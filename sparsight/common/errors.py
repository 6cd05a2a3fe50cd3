"""Mistakes that end a command with one line for the reader instead of a traceback, and checks that find them.

``need_*`` look at what is given to functions in Python, where no parser has looked at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, get_args

from sparsight.common.near import did_you_mean

_SHOWN = 60  # letters of a value


class Told(Exception):
    """An error whose message is all that its reader needs, whenever it comes: no traceback is shown."""


class ConfigurationError(Told, ValueError):
    """The configuration cannot be run; the message says why and what to do."""


def first_line(error: BaseException) -> str:
    """What an error says before it goes into details."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ConfigurationError that names an option, its value and what is allowed, unless a condition holds."""
    if not holds:
        raise ConfigurationError(f"{name} is {value}; allowed: {allowed}")


def reason_of(error: Exception) -> str:
    """Why data of another program could not be taken, without words of Python's."""
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]!r}"
    return str(error) if isinstance(error, ValueError) else "it holds something else"


def need_kind(name: str, value: object, kinds: type | tuple[type, ...], asked: str) -> None:
    """Refuse a value of another kind.

    Args:
        name: Of the option.
        value: Given for it.
        kinds: What it may be.
        asked: The same in words.

    Raises:
        ConfigurationError: It is of none of these.
    """
    if not isinstance(value, kinds):
        raise ConfigurationError(f"{name} is {_shown(value)}: give {asked}")


def need_list(name: str, value: object, kind: type) -> None:
    """Refuse what is no list of objects of a kind; see ``need_kind``."""
    of = f"a list of {kind.__name__}, such as [{kind.__name__}(...)]"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigurationError(f"{name} is {_shown(value)}: give {of}")
    for position, each in enumerate(value):
        need_kind(f"{name}.{position}", each, kind, f"a {kind.__name__}")


def need_texts(name: str, value: object) -> None:
    """Refuse what is no list of texts; a single one would be read letter by letter.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(value, str):
        raise ConfigurationError(f"{name} is {value!r}: give a list, [{value!r}]")
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ConfigurationError(f"{name} is {_shown(value)}: give a list of texts")


def need_choice(name: str, value: object, choices: Any) -> None:
    """Refuse what a ``Literal`` does not name.

    Raises:
        ConfigurationError: It does not.
    """
    known = get_args(choices)
    if value not in known:
        close = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ConfigurationError(f"{name} is {_shown(value)}; allowed: {', '.join(map(repr, known))}{close}")


def need_numbers(**given: object) -> None:
    """Refuse what is no number; none is left to others, and a text such as "1e-3" would fail at the first comparison.

    Raises:
        ConfigurationError: One is not.
    """
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigurationError(f"{name} is {_shown(value)}: give a number")


def need_whole(**given: object) -> None:
    """Refuse what is no whole number.

    Raises:
        ConfigurationError: One is not.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ConfigurationError(f"{name} is {_shown(value)}: give a whole number")


def need_options(known: Sequence[str], names: Iterable[str], *, where: str = "") -> None:
    """Refuse options that there are not.

    Args:
        known: Names of those that there are.
        names: Of those that are given.
        where: What stands before a name in the message.

    Raises:
        ConfigurationError: One is unknown.
    """
    for name in names:
        if name not in known:
            raise ConfigurationError(f"there is no option {where}{name}{did_you_mean(name, known)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN and "\n" not in text else f"of class {type(value).__name__}"


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read or written, or is of another run; the message names it and says what to do."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it stems from, what that stems from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
