"""Marks of tests that need a package which no other test does, and which is not in the environment of tests."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def needs(module: str) -> pytest.MarkDecorator:
    """Skips where a module cannot be imported."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {module}")


needs_torchao = needs("torchao")
