"""Rows of a matrix of tests: ``make test`` tries those that differ most, ``make test-slow`` all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(rows: Iterable[Any], *quick: Any) -> list[Any]:
    """Rows for ``parametrize``, slow but for some; a tuple is a row of several arguments.

    Raises:
        AssertionError: If a quick one is none of the rows, so that no test would be left unnoticed.
    """
    every = list(rows)
    assert all(row in every for row in quick), f"{quick} are not all among {every}"
    marked = [row if isinstance(row, tuple) else (row,) for row in every]
    return [
        row if row in quick else pytest.param(*values, marks=pytest.mark.slow)
        for row, values in zip(every, marked, strict=True)
    ]
