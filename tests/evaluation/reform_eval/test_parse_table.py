"""The table of docs/evaluation.md holds, row by row; and whatever a model writes can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsight.evaluation.questions.wording import same_answer, undressed
from sparsight.evaluation.reform_eval.parse import parse_choice

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
SHOWN = [("A", "dog"), ("B", "cat"), ("C", "a red bird")]


def rows() -> Iterator[tuple[str, list[tuple[str, str]], str]]:
    """Answers of the table, with the options that are shown and what they are read as."""
    (part,) = re.findall(r"## How a written choice is read\n(.*?)\n## ", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for line in part.splitlines():
        if line.startswith("| ") and not line.startswith(("| Rule", "| ---")):
            _, answers, options, read = (cell.strip() for cell in line.strip("|").split("|"))
            shown = [(text[1], text[4:]) for text in re.findall(r"`([^`]+)`", options)] or SHOWN
            yield from ((answer, shown, read) for answer in re.findall(r"`([^`]+)`", answers))


def test_every_answer_of_the_table_is_read_as_it_says() -> None:
    table = [*rows()]
    assert len(table) > 80
    wrong = []
    for answer, shown, read in table:
        place = parse_choice(answer, shown).place
        if (found := "none" if place is None else shown[place][0]) != read:
            wrong.append(f"{answer} is {found}, not {read}")
    assert not wrong


@pytest.mark.parametrize(
    ("written", "in_format"),
    [
        ("(B)", True),
        ("**(B)** cat", True),
        ("\uff08B\uff09", True),
        ("B, that is (B)", True),
        ("[B]", False),
        ("B", False),
    ],
)
def test_round_brackets_are_the_form_that_is_asked_for(written: str, in_format: bool) -> None:
    assert parse_choice(written, SHOWN) == (1, in_format)


def test_a_thought_that_the_prompt_opened_needs_an_end() -> None:
    assert parse_choice("it purrs</think>(B)", SHOWN, opened=True).place == 1
    assert parse_choice("it purrs, so (B)", SHOWN, opened=True).place is None
    assert parse_choice("it purrs, so (B)", SHOWN).place == 1


PIECES = st.sampled_from(
    [
        *("(", ")", "[", "]", "{", "}", "<", ">", "**", "$", '"', "'", "\\boxed{", "}", "</think>", "<think>"),
        *("A", "B", "C", "a", "b", "(A)", "(B)", "[C]", "or", "and", "not", "n't", "is", "The", "answer", "Option"),
        *(":", ".", ",", ";", "-", "\n", "dog", "cat", "a red bird", "yes", "no", "1", "2.5", "1,000"),
        *("\uff22", "\uff08", "\u7b54\u6848", "\u3010B\u3011"),
    ]
)
WRITTEN = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=30).map(" ".join), st.lists(PIECES).map("".join))
NAMES = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)


def check_reading(written: str, texts: list[str], number: int) -> None:
    shown = list(zip(ascii_uppercase, texts, strict=False))
    choice = parse_choice(written, shown)
    assert choice.place is None or 0 <= choice.place < len(shown)
    assert choice.place is not None or not choice.in_format
    same_answer(written, texts[0])
    place = number % len(shown)
    mark, text = shown[place]
    for form in (f"({mark})", f"**({mark})** {text}", f"<think>{written.replace('think', '')}</think>({mark})"):
        assert parse_choice(form, shown) == (place, True), form
    assert parse_choice(text, shown).place == place
    if all(undressed(other).casefold() not in (mark.casefold(), f"option {mark.casefold()}") for other in texts):
        for form in (mark, f"{mark}.", f"Answer: {mark}", f"option {mark}", f"[{mark}]", f"\\boxed{{{mark}}}"):
            assert parse_choice(form, shown).place == place, form


OPTIONS = st.lists(NAMES, min_size=2, max_size=6, unique_by=str.casefold)


@settings(max_examples=200, deadline=None)
@given(WRITTEN, OPTIONS, st.integers(0, 5))
def test_whatever_is_written_can_be_read_and_a_mark_is_read_as_it_is(w: str, texts: list[str], number: int) -> None:
    check_reading(w, texts, number)


@pytest.mark.faults
@settings(max_examples=6000, deadline=None)
@given(WRITTEN, OPTIONS, st.integers(0, 5))
def test_whatever_is_written_can_be_read_thousands_of_times(w: str, texts: list[str], number: int) -> None:
    check_reading(w, texts, number)
