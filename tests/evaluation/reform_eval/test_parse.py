"""Which option a written answer means."""

from __future__ import annotations

import pytest

from sparsight.evaluation.reform_eval.parse import parse_choice

SHOWN = [("A", "a red coat"), ("B", "The dress"), ("C", "two bags"), ("D", "B")]


@pytest.mark.parametrize(
    ("written", "place", "in_format"),
    [
        ("(B)", 1, True),
        (" (c) two bags", 2, True),
        ("It is (A), not (B).", 0, True),  # the first one decides
        ("(E)", None, False),  # no such mark
        ("(1)", None, False),
        ("A", 0, False),
        ("c.", 2, False),
        ("B", 3, False),  # an option's text
        ("C) two bags", 2, False),
        ("B is it", None, False),  # a word, not a mark
        ("a red coat", 0, False),
        ("Red coat!", 0, False),
        ("dress", 1, False),
        ("a red coat and more", None, False),
        ("", None, False),
        ("(AB)", None, False),
        ("I do not know", None, False),
    ],
)
def test_answers(written: str, place: int | None, in_format: bool) -> None:
    assert parse_choice(written, SHOWN) == (place, in_format)


def test_numbers_under_numbers_are_the_numbers_unless_they_stand_in_brackets() -> None:
    shown = [("1", "3"), ("2", "4"), ("3", "5"), ("4", "2")]
    assert parse_choice(" 4.", shown) == (1, False)
    assert parse_choice("(4)", shown) == (3, True)
    assert parse_choice("4. 2", shown) == (3, False)
    assert parse_choice("1", shown) == (0, False)


def test_brackets_inside_an_option_are_no_mark() -> None:
    shown = [("A", "vitamin (C)"), ("B", "vitamin D"), ("C", "vitamin (A); fat")]
    assert parse_choice("Vitamin (C).", shown) == (0, False)
    assert parse_choice("vitamin (A); fat", shown) == (2, False)
    assert parse_choice("(C) vitamin (A); fat", shown) == (2, True)


def test_equal_options_are_not_told_apart_by_their_text() -> None:
    assert parse_choice("coat", [("1", "a coat"), ("2", "the coat")]) == (None, False)
    assert parse_choice("(2)", [("1", "a coat"), ("2", "the coat")]) == (1, True)
