"""Which version of the suite's own words and rules an evaluation used."""

from __future__ import annotations

import hashlib
from itertools import product
from typing import get_args

from PIL import Image

from sparsight.evaluation.questions.question import Formulation, Method
from sparsight.evaluation.questions.variant import MARKS, Perturbation, Variant, variant
from sparsight.evaluation.reform_eval.parse import parse_choice
from sparsight.evaluation.reform_eval.prompt import make_prompt, own_instructions
from sparsight.evaluation.reform_eval.sample import Sample

_OPTIONS = ("one", "two", "a third")
_YES_NO = ("yes", "no")
_WRITTEN = (
    *("(B)", "(b) two", "(A) or (B)", "(Z)", "B.", "b", "B two", "Two!", "The two", "two (A)", "one two", ""),
    *(
        "**(B)**",
        "[B]",
        "Answer: B",
        "option B",
        "I choose B",
        "B because",
        "(s)he (B)",
        "not (A), (B)",
        "(A) is wrong (B)",
    ),
    *("2", "It is 2", "Two, I think", "one, not two", "A. Answer: B", "It may be (A). It may be (B)", "\\boxed{B}"),
    *(
        "<think>(A)</think>(B)",
        "<think>(A)",
        "<think>?</think>So (A). So (B)",
        "<answer>B</answer> A",
        "(A) one; (B) two",
    ),
    *(
        "Yes.",
        "No, it is not",
        "yes and no",
        "(A) one; (B) two; (C) a third (C)",
        "A, B",
        "Maybe [B]",
        "either one or two",
        "B is it",
    ),
)


def suite_hash() -> str:
    """SHA-256 over what the suite itself makes of a few fixed samples and answers.

    So it covers instructions, cue, example, how options are shown, what changes from run to run, and how a written
    choice is read, as far as these samples and answers show a difference.
    """
    found = hashlib.sha256()
    for part in (_prompts(), _variants(), _readings()):
        found.update(f"{part!r}\n".encode())
    return found.hexdigest()


def _prompts() -> list[object]:
    made: list[object] = []
    for formulation, method, images, marks in product(get_args(Formulation), get_args(Method), (0, 1), MARKS):
        sample = Sample("0", ("Which?",), (Image.new("L", (1, 1)),) * images, _OPTIONS, 0)
        for number, text in enumerate(own_instructions(formulation, method, with_images=bool(images))):
            put = Variant(number, 0, (2, 0, 1), marks)
            made.append(
                make_prompt(sample, put, instruction=text, formulation=formulation, method=method, example=True)
            )
    return made


def _variants() -> list[Variant]:
    return [
        variant(
            seed=0,
            task="task",
            sample=str(sample),
            run=run,
            instructions=5,
            wordings=2,
            options=4,
            marks="random",
            perturbation=Perturbation(),
        )
        for sample, run in product(range(3), range(3))
    ]


def _readings() -> list[object]:
    shown = [list(zip("ABC", options, strict=False)) for options in (_OPTIONS, _YES_NO)]
    return [parse_choice(text, options) for text in _WRITTEN for options in shown]
