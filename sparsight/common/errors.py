"""Mistakes that end a command with one line for the reader instead of a traceback."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """The configuration cannot be run; the message says why and what to do."""
