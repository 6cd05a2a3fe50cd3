"""Answers to prompts in other words, or read by other rules, are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsight.reform_eval import parse, perturb, prompt
from sparsight.reform_eval.identity import suite_hash


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (prompt, "_CHOOSE", (*prompt._CHOOSE[:4], "Choose.")),
        (prompt, "_ANSWER", (*prompt._ANSWER[:4], "Answer.")),
        (prompt, "_ANSWER_IN_TEXT", ("Answer.", *prompt._ANSWER_IN_TEXT[1:])),
        (prompt, "_READ", ("Read.", *prompt._READ[1:])),
        (prompt, "_DESCRIBE", ("Describe.", *prompt._DESCRIBE[1:])),
        (prompt, "CUE", "I say"),
        (prompt, "_EXAMPLE_QUESTION", "Is it?"),
        (prompt, "_listed", lambda options: f"{options}"),
        (perturb, "_generator", lambda *parts: np.random.default_rng(0)),
        (parse, "_plain", str.casefold),
        (parse, "_BARE", parse._MARK),
    ],
)
def test_what_the_suite_adds_is_covered(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any) -> None:
    before = suite_hash()
    assert suite_hash() == before
    monkeypatch.setattr(module, name, value)
    assert suite_hash() != before
