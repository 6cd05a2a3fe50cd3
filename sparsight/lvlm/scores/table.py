"""Scores of all layers side by side: ranks, rank correlations, where they come from; as JSON, rows and a plot."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.tables import WIDTH, csv_text, format_table, json_text
from sparsight.lvlm.scores.plot import plot_scores

FORMAT = "sparsight layer scores 1"
_REMEDY = "make them with `sparsight analyze`, whose scores.json is the file to give"
CORRELATIONS = ("spearman", "kendall")
Values = Sequence[float | None]


@dataclass(frozen=True)
class ScoreTable:
    """One number per score and layer; higher means more important.

    Args:
        values: Numbers by score, one a layer; ``None`` where there is nothing to measure, such as a window of layers
            that would go beyond the last.
        facts: What the numbers were measured on: model, samples, tokens of each kind, hash of the data.
        details: What a score tells besides, such as an order of removal.
    """

    values: dict[str, list[float | None]]
    facts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        """Depth of the decoder."""
        return len(next(iter(self.values.values())))

    def values_of(self, score: str) -> list[float | None]:
        """Numbers of one score.

        Raises:
            ValueError: There is no such score.
        """
        if score not in self.values:
            raise ValueError(f"there is no score {score!r}; there are: {', '.join(self.values)}")
        return self.values[score]

    def ranks(self, score: str) -> list[int | None]:
        """1 for the highest number; equal numbers share the better rank."""
        values = self.values_of(score)
        known = [value for value in values if value is not None]
        return [None if value is None else 1 + sum(other > value for other in known) for value in values]

    def correlations(self, kind: str) -> dict[str, dict[str, float | None]]:
        """Rank correlation of every pair of scores over the layers that both have; ``None`` where one is constant.

        Args:
            kind: ``spearman`` (ties get their mean rank) or ``kendall`` (tau-b).
        """
        return {a: {b: _correlation(kind, self.values[a], self.values[b]) for b in self.values} for a in self.values}

    # -- as text ---------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, object]]:
        """A row for every layer: each score's number and rank."""
        ranks = {name: self.ranks(name) for name in self.values}
        return [
            {"layer": layer}
            | {
                column: value
                for name in self.values
                for column, value in ((name, self.values[name][layer]), (f"{name} rank", ranks[name][layer]))
            }
            for layer in range(self.num_layers)
        ]

    def text(self) -> str:
        """Numbers with ranks in brackets, and Spearman's correlations below if there are several scores."""
        ranks = {name: self.ranks(name) for name in self.values}
        rows = [
            {"layer": layer} | {name: _cell(self.values[name][layer], ranks[name][layer]) for name in self.values}
            for layer in range(self.num_layers)
        ]
        if len(self.values) == 1:
            return format_table(rows, width=WIDTH)
        pairs = self.correlations("spearman").items()
        related = [
            {"rank correlation": name} | {k: "" if v is None else f"{v:.2f}" for k, v in row.items()}
            for name, row in pairs
        ]
        return f"{format_table(rows, width=WIDTH)}\n\n{format_table(related, width=WIDTH)}"

    # -- as files --------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        scores = {
            name: {"values": values, "ranks": self.ranks(name), **self.details.get(name, {})}
            for name, values in self.values.items()
        }
        correlations = {kind: self.correlations(kind) for kind in CORRELATIONS}
        return {"format": FORMAT, **self.facts, "scores": scores, "rank_correlations": correlations}

    def save(self, path: Path) -> None:
        """Write JSON that ``load`` reads."""
        write_text(path, json_text(self.as_dict()))

    def write(self, folder: Path) -> None:
        """Write ``scores.json``, ``scores.csv`` and ``scores.png`` into a folder, which is made if missing."""
        self.save(folder / "scores.json")
        write_text(folder / "scores.csv", csv_text(self.rows()))
        write_whole(folder / "scores.png", self.plot)

    def plot(self, path: Path) -> None:
        """Write a PNG: a panel for every score, and the rank correlations."""
        plot_scores(self.values, self.correlations("spearman"), path, title=_title(self.facts))

    @classmethod
    def load(cls, path: Path) -> ScoreTable:
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is something else.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there are no scores at {path}; {_REMEDY}")
        try:
            content = json.loads(path.read_bytes(), object_pairs_hook=_once)
        except ValueError as error:  # one that is no text, too
            raise ValueError(f"{path} is no JSON that can be used: {error}; {_REMEDY}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} holds no layer scores ({FORMAT}); {_REMEDY}")
        scores = content.get("scores")
        if not isinstance(scores, dict) or not all(isinstance(entry, dict) for entry in scores.values()) or not scores:
            raise ValueError(f"{path}: `scores` is no object of scores by name; {_REMEDY}")
        known = ("format", "scores", "rank_correlations")
        return cls(
            values={name: _numbers(entry.get("values"), f"score {name!r} in {path}") for name, entry in scores.items()},
            facts={key: value for key, value in content.items() if key not in known},
            details={
                name: extra
                for name, entry in content["scores"].items()
                if (extra := {key: value for key, value in entry.items() if key not in ("values", "ranks")})
            },
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ; of two equal ones JSON readers would keep the last."""
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"it has {repeated!r} twice")
    return dict(pairs)


def _numbers(values: Any, where: str) -> list[float | None]:
    """Return the numbers of a score, one a layer, as they are.

    Raises:
        ValueError: One is neither a finite number nor null, which says that there is nothing to measure.
    """
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: `values` is no list of numbers, one a layer; {_REMEDY}")
    for layer, value in enumerate(values):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and abs(value) <= sys.float_info.max):
            raise ValueError(f"{where}: layer {layer} has {value!r}, no finite number; {_REMEDY} or mend the file")
    return values


def _correlation(kind: str, a: Values, b: Values) -> float | None:
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    signs_LL = [np.sign(np.subtract.outer(column, column)) for column in zip(*both, strict=True)]
    # Spearman's is the correlation of mean ranks, and a mean rank is a row sum of signs; Kendall's that of the signs
    x, y = (signs.sum(axis=1) if kind == "spearman" else signs for signs in signs_LL)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread else None


def _cell(value: float | None, rank: int | None) -> str:
    return "" if value is None else f"{value:.4g} ({rank})"


def _title(facts: Mapping[str, Any]) -> str:
    tokens = facts.get("tokens", {})
    counted = ", ".join(f"{count} {kind} tokens" for kind, count in tokens.items())
    return f"{facts.get('model', '')}, {facts.get('samples', 0)} samples, {counted}"
