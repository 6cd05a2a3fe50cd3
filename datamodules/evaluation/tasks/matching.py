"""Whether text and image belong together."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from datamodules.evaluation.tasks.distractors import arranged, paired
from datamodules.evaluation.tasks.named import NamedTask
from datamodules.evaluation.tasks.reformulated import check_options
from datamodules.evaluation.tasks.similarity import plain
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

Kind = Literal["yes_no", "choice"]
WORDINGS = {
    "yes_no": (
        'Does the text "{text}" describe this picture?',
        'Do the picture and the words "{text}" belong together?',
        'Is "{text}" a fitting description of what is shown?',
        'Somebody wrote "{text}" under this image. Is that right?',
        'Would "{text}" be a true caption here?',
    ),
    "choice": (
        "Which text describes this picture?",
        "Which caption belongs to this image?",
        "Which words fit what is shown?",
        "What was written under this picture?",
        "Which description is true of this image?",
    ),
}


class MatchingTask(NamedTask):
    """Does a text match the image, or which of some texts does.

    Half of the answers are yes: exactly so where every record can be asked about, else nearly.

    With ``partners`` names that are most similar are put together in pairs (of an odd number three go round), and where
    the answer is no, it is the partner that is asked for. As each name is asked for about its own images as often as
    about its partner's, the text alone does not give the answer away, and every wrong one is a hard one.

    Args:
        source: Labelled or captioned images; class names, or captions, are the texts.
        kind: ``yes_no`` or ``choice``.
        partners: With ``yes_no``: take wrong texts by pairs, for which ``similar`` must say what is similar.
        options: Texts to choose from, with ``choice``.
        common: As for ``NamedTask`` and ``ReformulatedTask``; wordings have the field ``{text}`` with ``yes_no``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        kind: Kind = "yes_no",
        partners: bool = False,
        options: int = 4,
        **common: Any,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(get_args(Kind))}")
        super().__init__(source, default_wordings=WORDINGS[kind], formulation="SingleChoice", **common)
        self.kind = kind
        self.options = check_options(options)
        self.partners = partners
        self._partner: dict[str, str] = {}
        self._first: dict[str, str] = {}
        self._own: dict[int, bool] = {}  # by position: whether its own name is asked for, with ``partners``
        if partners and (kind != "yes_no" or self.similar is None):
            raise ValueError("partners is for kind yes_no, and needs `similar`: images, spelling or a file")

    def _read(self) -> None:
        super()._read()
        self._need_names(2 if self.kind == "yes_no" else self.options)
        if not self.partners:
            return
        assert self._similarity is not None  # partners needs it
        self._partner = paired(self._members, self._similarity, allowed=self._not_borne)
        self._first = {plain(name): name for name in self._members}  # of several spellings of a name

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        name, images = self._name_of(position), (record.needed_image,)
        if self.kind == "choice":
            options, answer = arranged(name, self._other_names(name, self.options - 1, rng), rng=rng)
            return Sample(record.id, self._questions(), images, options, answer)
        matches = self._matches(position)
        text = name if matches else self._wrong(name, rng)
        options, answer = arranged(*(("yes", ["no"]) if matches else ("no", ["yes"])), rng=rng)
        return Sample(record.id, self._questions(text=text), images, options, answer)

    def _matches(self, position: int) -> bool:
        if not self.partners:
            return self._ranks[position] % 2 == 0
        if not self._own:  # those of a name take turns, the two of a pair begin otherwise
            for number, name in enumerate(self._partner):
                ranked = sorted(self._members[name], key=self._ranks.__getitem__)
                self._own |= {member: (turn + number) % 2 == 0 for turn, member in enumerate(ranked)}
        return self._own[position]

    def _wrong(self, name: str, rng: np.random.Generator) -> str:
        return self._partner[self._first[plain(name)]] if self.partners else self._other_names(name, 1, rng)[0]
