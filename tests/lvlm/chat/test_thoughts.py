"""Thoughts are told from answers."""

from __future__ import annotations

import pytest

from sparsight.lvlm.chat.thoughts import MARKS, opens_thought, split_thought


@pytest.mark.parametrize(
    ("text", "thought", "answer", "unfinished"),
    [
        ("a bag", "", "a bag", False),
        ("<think>\n\n</think>\n\na bag", "", "a bag", False),
        ("<think>Hm.</think>a bag", "Hm.", "a bag", False),
        ("Hm.</think>a bag", "Hm.", "a bag", False),
        ("<think>a</think>no<think>b</think> yes", "anob", "yes", False),  # the last one counts
        ("<THINK>Hm.</THINK>a bag", "Hm.", "a bag", False),
        ("<think>Hm. a bag", "Hm. a bag", "", True),
        ("<think>a</think>no<think>b", "anob", "", True),
        ("<think>Hm.</think>", "Hm.", "", False),  # an empty answer, but not cut off
        ("", "", "", False),
    ],
)
def test_the_answer_stands_behind_the_last_thought(text: str, thought: str, answer: str, unfinished: bool) -> None:
    assert split_thought(text) == (thought, answer, unfinished)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_marks_of_every_kind(opening: str, closing: str) -> None:
    assert split_thought(f"{opening}Hm.{closing}\nbag") == ("Hm.", "bag", False)
    assert split_thought(f"{opening}Hm.") == ("Hm.", "", True)
    assert opens_thought(f"Who?{opening}\n") and not opens_thought(f"Who?{opening}\n\n{closing}\n\n")
    assert not opens_thought(f"{opening}Who?")


def test_a_thought_that_the_prompt_opened_needs_an_end() -> None:
    assert split_thought("Hm. a bag", opened=True) == ("Hm. a bag", "", True)
    assert split_thought("Hm.</think>a bag", opened=True) == ("Hm.", "a bag", False)
    assert split_thought("", opened=True).unfinished
