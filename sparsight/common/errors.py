"""Mistakes that end a command with one line for the reader instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator


class Told(Exception):
    """An error whose message is all that its reader needs, whenever it comes: no traceback is shown."""


class ConfigurationError(Told, ValueError):
    """The configuration cannot be run; the message says why and what to do."""


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ConfigurationError that names an option, its value and what is allowed, unless a condition holds."""
    if not holds:
        raise ConfigurationError(f"{name} is {value}; allowed: {allowed}")


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read or written, or is of another run; the message names it and says what to do."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it stems from, what that stems from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
