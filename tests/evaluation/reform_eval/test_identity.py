"""Answers to prompts in other words, or read by other rules, are told apart."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from sparsight.evaluation.questions import variant
from sparsight.evaluation.reform_eval import marks, parse, prompt
from sparsight.evaluation.reform_eval.identity import suite_hash
from sparsight.lvlm.chat import thoughts


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
        (variant, "_generator", lambda *parts: np.random.default_rng(0)),
        (parse, "_plain", str.casefold),
        (parse, "undressed", str.strip),
        (parse, "without_lead", str.strip),
        (parse, "without_list", lambda answer, _: answer),
        (parse, "_begun", lambda *_: None),
        (parse, "split_thought", lambda text, opened: thoughts.Thought("", text)),
        (marks, "_PAIRS", {"(": ")"}),
        *(
            (marks, name, re.compile("(?!)"))
            for name in ("_SAYS", "_ENDS", "_SAID_OF", "_DENIED_BEFORE", "_DENIED_AFTER")
        ),
    ],
)
def test_what_the_suite_adds_is_covered(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any) -> None:
    before = suite_hash()
    assert suite_hash() == before
    monkeypatch.setattr(module, name, value)
    assert suite_hash() != before
