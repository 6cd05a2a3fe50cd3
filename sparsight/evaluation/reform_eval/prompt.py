"""Questions as turns of a conversation.

By generation a choice is shown with its options, after a turn that shows the form of an answer and has nothing to do
with the image, and the answer is begun for the model. By likelihood the options are not shown: each of them is
weighed as the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from sparsight.evaluation.questions.question import Formulation, Method
from sparsight.evaluation.questions.variant import MARKS, Marks, Variant
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Turn

CUE = "The answer is"
_EXAMPLE_QUESTION = "Is it possible to talk about pictures?"
_EXAMPLE_OPTIONS = ("yes", "no", "perhaps", "never")

_CHOOSE = (
    "Look at the picture, read the question and choose one of the options. Reply with its mark, such as {form}.",
    "One of the options below answers the question about the picture. Give its mark in brackets, like {form}.",
    "Decide which option is right for this picture and question, and write only its mark, for example {form}.",
    "Pick the option that fits what can be seen. The reply should look like {form}.",
    "Use the picture to answer the question with one of the listed options, in the form {form}.",
)
_ANSWER = (
    "Answer the question about the picture.",
    "Look at the picture and reply to the question.",
    "Use what can be seen in the picture to answer.",
    "Study the picture, then give the answer to the question.",
    "Here is a picture and a question about it. Give the answer.",
)
_CHOOSE_IN_TEXT = (
    "Read the question and choose one of the options. Reply with its mark, such as {form}.",
    "One of the options below answers the question. Give its mark in brackets, like {form}.",
    "Decide which option is right, and write only its mark, for example {form}.",
    "Pick the option that fits. The reply should look like {form}.",
    "Answer the question with one of the listed options, in the form {form}.",
)
_ANSWER_IN_TEXT = (
    "Answer the question.",
    "Read the question and reply to it.",
    "Use what you know to answer.",
    "Think about the question, then give the answer.",
    "Here is a question. Give the answer.",
)
_READ = (
    "Read the text in the picture and answer with it alone.",
    "Find the text that is asked for in the picture and write it down.",
    "Reply with the words as they stand in the picture.",
    "Look for the text in the picture and copy it.",
    "Answer with text that can be read in the picture, and nothing else.",
)
_DESCRIBE = (
    "Describe the picture in one sentence.",
    "Write one short sentence about what the picture shows.",
    "Sum up in a single sentence what can be seen.",
    "Give the picture a caption of one sentence.",
    "Say briefly, in one sentence, what is in the picture.",
)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Args:
        turns: The conversation up to the question.
        begun: The words with which the answer begins for the model.
        images: All images, where there are others than the sample's.
    """

    turns: tuple[Turn, ...]
    begun: str = ""
    images: tuple[Image.Image, ...] | None = field(default=None, repr=False)


def own_instructions(formulation: Formulation, method: Method, *, with_images: bool) -> tuple[str, ...]:
    """The five instructions of a formulation; ``{form}`` stands for a mark in brackets.

    Args:
        formulation: The form of the questions.
        method: Whether the answer is written or weighed.
        with_images: Whether there are any to speak of.
    """
    if formulation == "SingleChoice" and method == "generation":
        return _CHOOSE if with_images else _CHOOSE_IN_TEXT
    if formulation == "SingleChoice":
        return _ANSWER if with_images else _ANSWER_IN_TEXT
    return _DESCRIBE if formulation == "Generation" else _READ


def make_prompt(
    sample: Sample, variant: Variant, *, instruction: str, formulation: Formulation, method: Method, example: bool
) -> Prompt:
    """The prompt of a sample.

    Args:
        sample: The question.
        variant: How it is put.
        instruction: What opens the prompt; empty for nothing.
        formulation: The form of the question.
        method: Whether the answer is written or weighed.
        example: Show the form of an answer first (choices by generation).
    """
    choose = formulation == "SingleChoice" and method == "generation"
    question = sample.questions[variant.wording]
    if choose:
        question = f"{question.rstrip()} {_listed(variant.shown(sample.options))}"
    turns = [*sample.history, Turn("user", question)]
    opening = instruction.replace("{form}", f"({MARKS[variant.marks][0]})") + "\n" if instruction else ""
    places = "" if IMAGE in question else IMAGE * len(sample.images)
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    turns[first] = Turn("user", places + opening + turns[first].text)
    shown = _example(variant.marks) if choose and example else ()
    return Prompt((*shown, *turns), CUE if choose else "")


def _example(marks: Marks) -> tuple[Turn, Turn]:
    """A choice whose answer needs no image, so that nothing but the form can be learnt from it."""
    options = list(zip(MARKS[marks], _EXAMPLE_OPTIONS, strict=False))
    mark, text = options[0]
    return Turn("user", f"{_EXAMPLE_QUESTION} {_listed(options)}"), Turn("assistant", f"{CUE} ({mark}) {text}")


def _listed(options: list[tuple[str, str]]) -> str:
    return f"Options: {'; '.join(f'({mark}) {text}' for mark, text in options)}."
