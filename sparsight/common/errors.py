"""Mistakes that end a command with one line for the reader instead of a traceback."""

from __future__ import annotations


class Told(Exception):
    """An error whose message is all that its reader needs, whenever it comes: no traceback is shown."""


class ConfigurationError(Told, ValueError):
    """The configuration cannot be run; the message says why and what to do."""


class CheckpointError(ConfigurationError):
    """A checkpoint cannot be read or written; the message names it and says what to do."""
