"""Published files of ReForm-Eval, with an entry or two each."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.evaluation.published import PublishedTask
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.reform_eval.taxonomy import find_data_set
from tests.tiny_files import png


def picture(value: int = 7, size: tuple[int, int] = (16, 12)) -> str:
    """A grey RGB image, (width, height), as PNG in base64."""
    return base64.b64encode(png(value, size=size)).decode()


def write(folder: Path, name: str, content: Any) -> None:
    """Put a file where the data set ``name`` has it, or at a path."""
    path = folder / (name if name.endswith(".json") else find_data_set(name).file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def opened(folder: Path, name: str, **options: Any) -> PublishedTask:
    task = PublishedTask(name, root=str(folder), **options)
    task.open()
    return task


CHOICE = {"question_id": "q1", "image": picture(), "question": "What?", "answer_options": ["cat", "dog"], "answer": 1}


def container(*entries: Any, **header: Any) -> dict[str, Any]:
    return {"version": "2.0", "split": "val", **header, "data": list(entries)}


def core(folder: Path, *entries: Any, formulation: Formulation = "SingleChoice", **options: Any) -> PublishedTask:
    """A task of a file in the layout `core`."""
    write(folder, "own.json", container(*entries))
    return PublishedTask(file=folder / "own.json", dimension="spatial", formulation=formulation, **options)


OPEN = {"question_id": "q1", "image": picture(), "question": ["Read it.", "What is written?"], "answer_txt": "dog"}


def tdiuc(folder: Path, *, kinds: Sequence[str] = ("color", "counting", "color")) -> None:
    questions = [{"question_id": n, "image_id": picture(n), "question": f"Colour {n}?"} for n in range(len(kinds))]
    notes = [{"question_id": n, "question_type": k, "answers": [{"answer": "red"}]} for n, k in enumerate(kinds)]
    write(folder, "huggingface_data/TDIUC/TDIUC_val_ques.json", questions)
    write(folder, "huggingface_data/TDIUC/TDIUC_val_anns.json", list(reversed(notes)))
    colours = ["red", "blue", "green", "white", "black", "grey"]
    write(folder, "huggingface_data/TDIUC/choice_list/color.json", {"choice": colours})
