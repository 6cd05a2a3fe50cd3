"""How a question is put in each of several runs: with which words, options in which order, under which marks.

Everything follows from (seed, task, sample, run), so no number of processes and no interruption changes it.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Marks = Literal["number", "lower", "upper"]
MARKS: dict[Marks, str] = {
    "number": string.digits[1:],
    "lower": string.ascii_lowercase,
    "upper": string.ascii_uppercase,
}


@dataclass(frozen=True)
class Perturbation:
    """What changes from run to run; the first run has the options in their own order under the chosen marks.

    Args:
        instructions: Take the next instruction, and the next wording of the question where there are several.
        options: Shuffle the options.
        marks: Draw the kind of marks.
    """

    instructions: bool = True
    options: bool = True
    marks: bool = True


class Variant(NamedTuple):
    """How a question is put.

    Args:
        instruction: Number of the instruction.
        wording: Number of the wording of the question.
        order: The options' own positions, in the order in which they are shown.
        marks: Kind of their marks.
    """

    instruction: int
    wording: int
    order: tuple[int, ...]
    marks: Marks

    def shown(self, options: tuple[str, ...]) -> list[tuple[str, str]]:
        """Mark and text of the options as they are shown.

        Raises:
            ValueError: There are more options than marks.
        """
        known = MARKS[self.marks]
        if len(options) > len(known):
            raise ValueError(f"{len(options)} options are more than there are marks of kind {self.marks}: {len(known)}")
        return [(known[place], options[own]) for place, own in enumerate(self.order)]


def variant(
    *,
    seed: int,
    task: str,
    sample: str,
    run: int,
    instructions: int,
    wordings: int,
    options: int,
    marks: Marks | Literal["random"],
    perturbation: Perturbation,
) -> Variant:
    """How one run puts one sample.

    Args:
        seed: Of the evaluation.
        task: Name of the task.
        sample: Id of the sample.
        run: Number of the run, from 0.
        instructions: How many there are; samples begin with different ones, so a single run uses all of them.
        wordings: How many the question has.
        options: How many it has.
        marks: Kind of marks; ``random`` draws it in every run.
        perturbation: What changes from run to run.
    """
    first = _generator(seed, task, sample)
    begin = int(first.integers(instructions))
    step = run if perturbation.instructions else 0
    rng = _generator(seed, task, sample, run)
    shuffled = tuple(int(place) for place in rng.permutation(options))
    kinds: list[Marks] = [kind for kind, known in MARKS.items() if len(known) >= options]
    drawn = kinds[int(rng.integers(len(kinds)))] if kinds else "upper"
    return Variant(
        instruction=(begin + step) % instructions,
        wording=step % wordings,
        order=shuffled if perturbation.options and run > 0 else tuple(range(options)),
        marks=drawn if marks == "random" or (perturbation.marks and run > 0) else marks,
    )


def _generator(*parts: object) -> np.random.Generator:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
