"""Scores of an evaluation by task, and what every item's answer was.

Items are kept one by one, because comparisons of two models pair them. Several processes put theirs together; an item
that was met twice (samplers may fill up a last batch) counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError
from sparsight.common.tables import json_text
from sparsight.common.text import read_json
from sparsight.common.training.processes import process_count
from sparsight.lvlm.answer.wording import plain_words, undressed, without_article, without_lead

VERSION = 1
NAMES = {"": "unnamed", "visual": "visual (task)", "text": "text (task)"}  # of tasks, told from those of means


@dataclass(frozen=True)
class Item:
    """One answered question.

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


class TaskScores:
    """Collects items, and answers accuracies from 0 to 1."""

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
        found: dict[str, float] = {}
        for kind, right in KINDS.items():
            by_task: dict[str, list[bool]] = {}
            visual: dict[str, bool] = {}
            for item in self.items.values():
                outcome = right(item)
                if outcome is not None:
                    task = NAMES.get(item.task, item.task)
                    by_task.setdefault(task, []).append(outcome)
                    visual[task] = visual.get(task, False) or item.visual
            means = {task: sum(outcomes) / len(outcomes) for task, outcomes in by_task.items()}
            found |= {f"{kind}/{task}": value for task, value in means.items()}
            for name, wanted in (("visual", True), ("text", False)):
                group = [value for task, value in means.items() if visual[task] == wanted]
                if group:
                    found[f"{kind}/{name}"] = sum(group) / len(group)
        return found

    def kept(self, reference: TaskScores) -> dict[str, float | None]:
        """Accuracies as shares of another model's on the same items; none where its accuracy is 0.

        Raises:
            ConfigurationError: The two have answered different items.
        """
        own, other = self._questions(), reference._questions()
        different = sorted(i for i in own.keys() | other.keys() if own.get(i) != other.get(i))
        if different:
            first = different[0]
            raise ConfigurationError(
                f"evaluation.reference has answered {len(other)} items, not the same {len(own)} as this model: "
                f"{len(different)} differ, the first of them item {first}: {other.get(first, 'none')} there, "
                f"{own.get(first, 'none')} here; let both answer the same split with the same data and data.limit"
            )
        there = reference.accuracies()
        return {n: value / there[n] if there[n] else None for n, value in self.accuracies().items() if n in there}

    def _questions(self) -> dict[int, str]:
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
        """The items of a file that :meth:`save` wrote.

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
            raise ValueError(f"{path} holds no scores of version {VERSION}: {error!r}") from error
        return scores


KINDS: Mapping[str, Any] = {
    "likelihood": lambda item: None if item.candidates < 2 else item.likeliest == item.answer,
    "likelihood_by_token": lambda item: None if item.candidates < 2 else item.likeliest_by_token == item.answer,
    "generation": lambda item: item.generated_right,
}


def same_answer(written: str, right: str) -> bool:
    """Whether a text begins with an answer, whatever its case, dress, punctuation, leading article or ``It is``.

    Only whole words and numbers count: "no" is not in "nothing", nor 3 in 3.5. The letter "A" is no article where it
    is the answer. "Yes and no" is neither.
    """
    said = undressed(written)
    wanted = plain_words(undressed(right))
    for words in (plain_words(said), plain_words(without_lead(said))):
        for own, asked in ((words, wanted), (without_article(words), without_article(wanted))):
            both = asked in (["yes"], ["no"]) and own[1:3] in (
                ["and", "no"],
                ["or", "no"],
                ["and", "yes"],
                ["or", "yes"],
            )
            if wanted and own[: len(asked)] == asked and not both:
                return True
    return False
