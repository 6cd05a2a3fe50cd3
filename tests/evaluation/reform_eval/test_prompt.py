"""Questions as turns of a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.reform_eval.prompt import CUE, Prompt, make_prompt, own_instructions
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Turn

PICTURE = Image.new("RGB", (4, 4))
CHOICE = Sample("1", ("What is it?", "What can be seen?"), (PICTURE,), ("coat", "bag"), 1)
PUT = Variant(instruction=0, wording=0, order=(1, 0), marks="lower")


def prompt(sample: Sample = CHOICE, **options: Any) -> Prompt:
    given: dict[str, Any] = {"formulation": "SingleChoice", "method": "generation", "example": True}
    return make_prompt(sample, PUT, instruction="Choose, like {form}.", **{**given, **options})


def test_a_choice_is_shown_with_marks_after_an_example_without_picture() -> None:
    asked = prompt()
    example, answer, question = asked.turns
    assert IMAGE not in example.text
    assert example.role == question.role == "user"
    assert answer == Turn("assistant", f"{CUE} (a) yes")
    assert question.text == f"{IMAGE}Choose, like (a).\nWhat is it? Options: (a) bag; (b) coat."
    assert asked.begun == CUE


def test_the_example_can_be_left_out() -> None:
    assert len(prompt(example=False).turns) == 1


def test_by_likelihood_no_option_is_shown() -> None:
    (question,) = prompt(method="likelihood").turns
    assert question.text == f"{IMAGE}Choose, like (a).\nWhat is it?"
    assert prompt(method="likelihood").begun == ""


def test_wordings_change() -> None:
    asked = make_prompt(
        CHOICE, PUT._replace(wording=1), instruction="", formulation="SingleChoice", method="likelihood", example=True
    )
    assert asked.turns == (Turn("user", f"{IMAGE}What can be seen?"),)


def test_open_questions_have_neither_options_nor_example() -> None:
    sample = Sample("1", ("What does it say?",), (PICTURE,), references=("hello",))
    asked = prompt(sample, formulation="OCROpenEnded")
    assert asked == Prompt((Turn("user", f"{IMAGE}Choose, like (a).\nWhat does it say?"),))


def test_pictures_stay_where_the_question_has_them() -> None:
    sample = Sample("1", (f"Is {IMAGE} like {IMAGE}?",), (PICTURE, PICTURE), ("yes", "no"), 0)
    assert prompt(sample, method="likelihood").turns[-1].text == f"Choose, like (a).\nIs {IMAGE} like {IMAGE}?"


def test_a_dialogue_has_pictures_and_instruction_in_its_first_turn() -> None:
    history = (Turn("user", "What is it?"), Turn("assistant", "a bag"))
    sample = Sample("1", ("Which colour?",), (PICTURE,), ("red", "blue"), 0, history=history)
    turns = prompt(sample, method="likelihood").turns
    assert [turn.text for turn in turns] == [f"{IMAGE}Choose, like (a).\nWhat is it?", "a bag", "Which colour?"]


def test_without_pictures_there_is_nothing_in_their_place() -> None:
    sample = Sample("1", ("What is 2 + 2?",), (), ("4", "5"), 0)
    assert IMAGE not in prompt(sample).turns[-1].text


@pytest.mark.parametrize("formulation", ["SingleChoice", "OCROpenEnded", "KIEOpenEnded", "Generation"])
@pytest.mark.parametrize("method", ["generation", "likelihood"])
@pytest.mark.parametrize("pictures", [True, False])
def test_every_formulation_has_five_instructions(formulation: Any, method: Any, pictures: bool) -> None:
    found = own_instructions(formulation, method, with_images=pictures)
    assert len(set(found)) == 5
    shows_form = formulation == "SingleChoice" and method == "generation"
    assert all(("{form}" in text) == shows_form for text in found)
    if not pictures and formulation == "SingleChoice":
        assert not any("picture" in text or "seen" in text for text in found)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("1", ()), "no question"),
        (Sample("1", ("Q", " ")), "empty wording"),
        (Sample("1", ("Q",), (), ("a", "a"), 0), "two or more different options"),
        (Sample("1", ("Q",), (), ("a",), 0), "two or more different options"),
        (Sample("1", ("Q",), (), ("a", "b"), 2), "answer is 2, not the position of one of 2 options"),
        (Sample("1", ("Q",), (), ("a", "b")), "answer is None"),
        (Sample("1", (f"{IMAGE}{IMAGE} same?",), (PICTURE,), ("a", "b"), 0), "2 places for pictures .* there are 1"),
        (Sample("1", ("Q",), (), ("a", "b"), 0, history=(Turn("user", IMAGE),)), "belong to the question"),
        (Sample("1", ("Q",), (), (f"a {IMAGE}", "b"), 0), "belong to the question"),
        (Sample("1", ("Q",), (), ("a", "b"), 0, turn=-1), "turn is -1"),
    ],
)
def test_parts_of_a_choice_must_fit_together(sample: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample.check("SingleChoice")


def test_open_questions_need_accepted_answers() -> None:
    with pytest.raises(ValueError, match="Generation needs accepted answers"):
        Sample("1", ("Q",)).check("Generation")
