"""Options of how questions are put."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from datamodules.evaluation.dataset import Protocol
from sparsight.common.errors import require
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.questions.variant import MARKS, Marks, Perturbation


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """How questions are put.

    Args:
        methods: ``likelihood``, ``generation``, or both; likelihoods alone if not given.
        runs: How often every sample is put, each time in another way: 5 tells how unstable answers are.
        perturbation: What changes from run to run; all that can if not given.
        marks: Marks of options: ``upper``, ``lower``, ``number``, or ``random`` for another kind each time.
        example: Show the form of an answer, by a question that needs no image, before a choice is asked for.
        new_tokens: Most tokens of a written answer.

    Raises:
        ValueError: An option is out of range.
    """

    methods: Sequence[Method] | None = None
    runs: int = 1
    perturbation: Perturbation | None = None
    marks: Marks | Literal["random"] = "upper"
    example: bool = True
    new_tokens: int = 30

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        given = self.methods
        if given is not None:
            fits = given and set(given) <= set(get_args(Method)) and len(set(given)) == len(given)
            require(bool(fits), "methods", given, "likelihood, generation")
        require(self.marks in (*MARKS, "random"), "marks", self.marks, f"{', '.join(MARKS)}, random")
        for name, value in (("runs", self.runs), ("new_tokens", self.new_tokens)):
            require(value >= 1, name, value, "1 or more")

    def protocol(self, seed: int) -> Protocol:
        """The protocol, with the seed of what changes from run to run."""
        methods = ("likelihood",) if self.methods is None else tuple(self.methods)
        perturbation = self.perturbation or Perturbation()
        return Protocol(methods, self.runs, perturbation, self.marks, self.example, self.new_tokens, seed)
