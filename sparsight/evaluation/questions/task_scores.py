"""Scores of a validation by task, and what was answered in every item.

Items are kept one by one, because comparisons of two models pair them. Several processes put theirs together; an item
that was met twice (samplers may fill up a last batch) counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError, reason_of
from sparsight.common.tables import json_text
from sparsight.common.text import read_json
from sparsight.common.training.processes import process_count
from sparsight.evaluation.questions.answer import Answered
from sparsight.evaluation.questions.scores import Answer, Estimate, ScoreKey, mean_estimate, paired, task_scores
from sparsight.evaluation.questions.wording import same_answer

VERSION = 1
KINDS = {  # of accuracies, with the method and the metric of each
    "likelihood": ("likelihood", "accuracy"),
    "likelihood_by_token": ("likelihood", "accuracy_by_token"),
    "generation": ("generation", "accuracy"),
}
GROUPS = ("visual", "text")  # of tasks: with and without images
NAMES = {"": "unnamed", "visual": "visual (task)", "text": "text (task)"}  # of tasks, told from those of means


@dataclass(frozen=True)
class Item:
    """What is kept of an answered question in ``scores_*.json``.

    Args:
        index: Position in its source.
        task: Its task.
        visual: Whether there was an image.
        answer: Position of the right candidate.
        candidates: Number of candidates; with one there is nothing to choose.
        log_likelihood: Of the right candidate, in nats.
        tokens: Of the right candidate.
        likeliest: Candidate with the highest sum of log-probabilities.
        likeliest_by_token: Candidate with the highest mean of them over its tokens.
        generated: What the model wrote, behind its thought; none if it was not asked to.
        generated_right: Whether that is the right candidate.
        unfinished: Whether it was cut off before the thought ended, so that there is no answer.
    """

    index: int
    task: str
    visual: bool
    answer: int
    candidates: int
    log_likelihood: float
    tokens: int
    likeliest: int
    likeliest_by_token: int
    generated: str | None = None
    generated_right: bool | None = None
    unfinished: bool = False

    @classmethod
    def of(cls, answered: Answered) -> Item:
        """Of a question whose options were weighed, and which may have been answered in writing, too."""
        question, weighed, written = answered
        assert weighed is not None and question.answer is not None
        said = None if written is None else written.parts()
        return cls(
            index=question.position,
            task=question.task,
            visual=question.images > 0,
            answer=question.answer,
            candidates=len(question.options),
            log_likelihood=weighed.log_likelihoods[question.answer],
            tokens=weighed.tokens[question.answer],
            likeliest=weighed.choice,
            likeliest_by_token=weighed.choice_by_token,
            generated=None if said is None else said.answer,
            generated_right=None if said is None else same_answer(said.answer, question.options[question.answer]),
            unfinished=said is not None and said.unfinished,
        )

    @property
    def name(self) -> str:
        """Of its task, told from the names of means."""
        return NAMES.get(self.task, self.task)

    def answers(self) -> list[Answer]:
        """What counts in accuracies, as plain data for ``sparsight.evaluation.questions.scores.task_scores``."""
        asked = {"task": self.name, "sample": str(self.index), "run": 0, "answer": self.answer}
        found: list[Answer] = []
        if self.candidates > 1:  # with one there is nothing to choose
            chosen = {"choice": self.likeliest, "choice_by_token": self.likeliest_by_token}
            found.append(asked | {"method": "likelihood"} | chosen)
        if self.generated_right is not None:
            found.append(asked | {"method": "generation", "choice": self.answer if self.generated_right else None})
        return found


class TaskScores:
    """Collects items, and gives accuracies from 0 to 1."""

    def __init__(self) -> None:
        self.items: dict[int, Item] = {}

    def add(self, items: Iterable[Item]) -> None:
        """Take answered items of this process."""
        self.items |= {item.index: item for item in items}

    def gather(self) -> None:
        """Put the items of all processes together, in the order of their source."""
        parts: list[Any] = [self.items]
        if process_count() > 1:
            parts = [None] * process_count()
            dist.all_gather_object(parts, self.items)
        found: dict[int, Item] = {index: item for part in parts for index, item in part.items()}
        self.items = {index: found[index] for index in sorted(found)}

    def loss(self) -> float:
        """Mean negative log-likelihood in nats of the tokens of right answers."""
        tokens = sum(item.tokens for item in self.items.values())
        return -sum(item.log_likelihood for item in self.items.values()) / max(tokens, 1)

    def accuracies(self) -> dict[str, float]:
        """Accuracy by likelihood, and by generation where asked, of every task and of all with and without images.

        Names are ``<kind>/<task>``, with kinds ``likelihood``, ``likelihood_by_token`` and ``generation``, and tasks
        ``visual`` and ``text``: means over tasks, so that a large task does not hide a small one.
        """
        return {name: each.value for name, each in self._named().items()}

    def _named(self) -> dict[str, Estimate]:
        """Estimates by the names of accuracies, without draws."""
        found = self.estimates(resamples=0)
        kinds = {pair: kind for kind, pair in KINDS.items()}
        return {f"{kinds[key.method, key.metric]}/{key.name}": each for key, each in found.items()}

    def estimates(self, *, resamples: int) -> dict[ScoreKey, Estimate]:
        """Accuracies with draws of a bootstrap: of tasks, and of the groups of those with and without images."""
        of_tasks = task_scores(
            [answer for item in self.items.values() for answer in item.answers()], resamples=resamples
        )
        visual = {item.name for item in self.items.values() if item.visual}
        found: dict[ScoreKey, Estimate] = {}
        for method, metric in KINDS.values():
            own = {key: each for key, each in of_tasks.items() if (key.method, key.metric) == (method, metric)}
            found |= own
            for group, wanted in zip(GROUPS, (True, False), strict=True):
                members = [each for key, each in own.items() if (key.name in visual) == wanted]
                if members:
                    found[ScoreKey(method, "group", group, metric)] = mean_estimate(members)
        return found

    def kept(self, reference: TaskScores) -> dict[str, float | None]:
        """Accuracies as shares of another model's on the same items; none where its accuracy is 0.

        Raises:
            ConfigurationError: The two have answered different items.
        """
        own, other = self.questions(), reference.questions()
        different = sorted(i for i in own.keys() | other.keys() if own.get(i) != other.get(i))
        if different:
            first = different[0]
            raise ConfigurationError(
                f"evaluation.reference has answered {len(other)} items, not the same {len(own)} as this model: "
                f"{len(different)} differ, the first of them item {first}: {other.get(first, 'none')} there, "
                f"{own.get(first, 'none')} here; let both answer the same split with the same data and data.limit"
            )
        there = reference._named()
        return {name: paired(each, there[name]).kept for name, each in self._named().items() if name in there}

    def questions(self) -> dict[int, str]:
        """What was asked in each item, in words."""
        return {
            index: f"answer {item.answer} of {item.candidates}, task {item.task!r}"
            for index, item in self.items.items()
        }

    def save(self, path: Path) -> None:
        """Write accuracies and items as JSON."""
        items = [asdict(item) for item in self.items.values()]
        write_text(path, json_text({"version": VERSION, "accuracies": self.accuracies(), "items": items}))

    @classmethod
    def load(cls, path: str | Path) -> TaskScores:
        """The items of a file that ``save`` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there are no scores at {path}; `sparsight validate` and `test` write them")
        scores = cls()
        try:
            content = read_json(path)
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']}")
            scores.add(Item(**item) for item in content["items"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no scores of `sparsight validate` or `test` in version {VERSION}: {reason_of(error)}"
            ) from error
        return scores
