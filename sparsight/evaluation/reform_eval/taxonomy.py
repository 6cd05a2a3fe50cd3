"""ReForm-Eval's taxonomy (arXiv 2310.02569): abilities, dimensions, tasks and 61 data sets, read from taxonomy.json.

The ability ``language`` with its dimension ``text_only`` is ours: questions without images show what a model forgot.
So is ``benchmarks`` with its dimension ``benchmark``: data sets that are scored by their own rules.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from sparsight.evaluation.questions.question import Formulation

CAPTIONS = "description"  # the dimension whose score is CIDEr, which is no share of anything


@dataclass(frozen=True)
class Layout:
    """Where a published file keeps what a sample needs; the defaults are the files that Sparsight writes.

    A field is a name in an entry, or a path such as ``answers.0.answer``; ``None`` says that there is none.

    Args:
        records: Path of the list of entries; in a file that is a list it does not matter.
        id: Field of the id; without one an entry's position is its id.
        image: Field of the images, base64: one or a list. Files that have ``img`` in place of ``image``, or the other
            way round, are read, too.
        question: Field of the question: a text or a list of wordings.
        wordings: Questions in place of the field, with places such as ``{claim}`` for an entry's fields.
        options: Field of the answers to choose from.
        fixed_options: They, where the file leaves them out because they are the same in all entries.
        option_end: What every option ends with, added where it does not.
        answer: Field of the right one: its position (a number) or its text.
        references: Field of accepted answers: a text or a list.
        history: Field of earlier turns, ``{"from": ..., "value": ...}``.
        turn: Field of the number in its dialogue.
        dialogue: Field of the id of that dialogue.
        boxes: Field of one box or a list, drawn on the image when it is read.
        corners: Boxes are two corners (x, y, x, y), not a corner with width and height.
        crop: Cut the box out instead.
        line: Width of drawn boxes, in pixels.
        rounds: Field of a dialogue's rounds, whose texts are numbers in the lists ``questions`` and ``answers``.
        join: A second file; its entries complete those of equal id.
        join_records: Path of the list in it.
        where: Values that fields must have; other entries are left out.
        pool: File of answers from which wrong options are drawn, where none are stored.
    """

    records: str = "data"
    id: str | None = "question_id"
    image: str = "image"
    question: str | None = "question"
    wordings: tuple[str, ...] = ()
    options: str | None = "answer_options"
    fixed_options: tuple[str, ...] = ()
    option_end: str = ""
    answer: str | None = "answer"
    references: str | None = "answer_txt"
    history: str | None = "history"
    turn: str | None = "turn"
    dialogue: str | None = "dialogue"
    boxes: str | None = None
    corners: bool = False
    crop: bool = False
    line: int = 3
    rounds: str | None = None
    join: str | None = None
    join_records: str = ""
    where: dict[str, str] = field(default_factory=dict)
    pool: str | None = None

    def changed(self, fields: dict[str, Any]) -> Layout:
        """This layout with other fields.

        Raises:
            ValueError: There is no such field.
        """
        unknown = sorted(fields.keys() - vars(self).keys())
        if unknown:
            raise ValueError(f"a layout has no field {unknown[0]!r}; it has {', '.join(vars(self))}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return replace(self, **values)


@dataclass(frozen=True)
class DataSet:
    """One of the published data sets: its place in the taxonomy, its file and how to read it."""

    name: str
    ability: str
    dimension: str
    task: str
    formulation: Formulation
    file: str
    layout: Layout


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("taxonomy.json").read_text(encoding="utf-8"))
    return content


@cache
def abilities() -> dict[str, tuple[str, ...]]:
    """Abilities with their dimensions, in the order of reports."""
    return {ability: tuple(dimensions) for ability, dimensions in _content()["abilities"].items()}


def dimensions() -> tuple[str, ...]:
    """All dimensions, in the order of reports."""
    return tuple(dimension for group in abilities().values() for dimension in group)


@cache
def data_sets() -> tuple[DataSet, ...]:
    """The published data sets, in the order of the taxonomy."""
    return tuple(
        DataSet(
            name=entry["name"],
            ability=ability,
            dimension=dimension,
            task=task,
            formulation=entry["formulation"],
            file=entry["file"],
            layout=find_layout(entry["layout"]).changed(entry.get("fields", {})),
        )
        for ability, group in _content()["abilities"].items()
        for dimension, tasks in group.items()
        for task, entries in tasks.items()
        for entry in entries
    )


def find_data_set(name: str) -> DataSet:
    """A published data set by its name.

    Raises:
        ValueError: There is none; the message names similar ones.
    """
    by_name = {found.name: found for found in data_sets()}
    if name not in by_name:
        raise ValueError(_unknown("data set", name, list(by_name)))
    return by_name[name]


def find_layout(name: str) -> Layout:
    """A layout of published files by its name.

    Raises:
        ValueError: There is none.
    """
    layouts = _content()["layouts"]
    if name not in layouts:
        raise ValueError(_unknown("layout", name, list(layouts)))
    return Layout().changed(layouts[name])


def check_dimension(name: str) -> str:
    """Return ``name`` if it is a dimension.

    Raises:
        ValueError: It is none.
    """
    if name not in dimensions():
        raise ValueError(_unknown("dimension", name, list(dimensions())))
    return name


def _unknown(what: str, name: str, known: list[str]) -> str:
    lower = {found.lower(): found for found in known}
    close = [lower[found] for found in get_close_matches(name.lower(), lower, n=3)]
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}"
    return f"{what} {name!r} is unknown; {hint}"
