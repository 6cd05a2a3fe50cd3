"""Questions that a source already has, brought into the form of a choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from datamodules.evaluation.tasks.distractors import answer_distractors, arranged
from datamodules.evaluation.tasks.reformulated import ReformulatedTask, check_options
from datamodules.evaluation.tasks.similarity import check_similar, load_similarity
from datamodules.sources.records import CorruptRecord, Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Conversation

WORDINGS = ("{question}",)
ANSWERS_OF = 1000  # records whose answers may be wrong options: reading all of a large source would take long


class QuestionsTask(ReformulatedTask):
    """The last question of each conversation; what was said before is its history. Images are not needed.

    Candidates that come with a question are its options. To other questions, wrong options are the other of yes and
    no, near numbers, or answers to other questions of the source (of the first 1000 in the task's order).

    Args:
        source: Records with conversations, such as ``LabelledQuestions``, ``TextQuestions`` or files of them.
        options: Answers to choose from where a question has no candidates.
        similar: Take the most similar answers as wrong ones: ``spelling``, or a safetensors file of embeddings (see
            ``datamodules.evaluation.tasks.similarity``); otherwise they are drawn.
        remove: Texts to take out of questions, such as a hint on the form of the answer, which instructions replace.
        common: As for ``ReformulatedTask``; wordings have the field ``{question}``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        options: int = 4,
        similar: str | None = None,
        remove: list[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(source, default_wordings=WORDINGS, formulation="SingleChoice", **common)
        self.options = check_options(options)
        self.similar = similar
        self.remove = [] if remove is None else remove
        self._answers: list[str] | None = None

    def check_paths(self) -> None:
        """See that the files of the source and of `similar` are there."""
        super().check_paths()
        check_similar(self.similar)

    def _read(self) -> None:
        self._similarity = load_similarity(self.similar)

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        talk = record.conversation
        if talk is None:
            raise CorruptRecord("it has no conversation; make some with LabelledQuestions, or take another task")
        before, last = talk.question_and_answer
        if not before or before[-1].role != "user":
            raise CorruptRecord("its last answer follows no question")
        options, answer = self._options(talk, last.text.strip(), rng)
        history, question = before[:-1], before[-1].text
        if question.count(IMAGE) != len(talk.images):  # some belong to the history: all come first
            history = tuple(replace(turn, text=turn.text.replace(IMAGE, "").strip()) for turn in history)
            question = question.replace(IMAGE, "")
        for text in self.remove:
            question = question.replace(text, "")
        return Sample(
            record.id,
            self._questions(question=question.strip()),
            talk.images,
            options,
            answer,
            history=history,
            turn=sum(turn.role == "assistant" for turn in history) if history else None,
        )

    def _options(self, talk: Conversation, right: str, rng: np.random.Generator) -> tuple[tuple[str, ...], int]:
        if talk.candidates:
            wrong = [text for number, text in enumerate(talk.candidates) if number != talk.answer]
        else:
            answers = self._all_answers()
            wrong = answer_distractors(right, answers, self.options - 1, rng=rng, similar=self._similarity)
        return arranged(right, wrong, rng=rng)

    def _all_answers(self) -> list[str]:
        """Answers to questions that have no candidates, read when they are first needed; ``limit`` plays no part."""
        if self._answers is None:
            found = set()
            for position in self._order[:ANSWERS_OF]:
                try:
                    talk = self.source[position].conversation
                except CorruptRecord:
                    continue
                if talk is not None and not talk.candidates:
                    found.add(talk.question_and_answer[1].text.strip())
            self._answers = sorted(found)
        return self._answers
