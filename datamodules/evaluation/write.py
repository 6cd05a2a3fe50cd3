"""Writes a task as a file in ReForm-Eval's published format, which ``PublishedTask`` reads back."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.evaluation.task import EvaluationTask
from sparsight.common.disk.files import write_whole
from sparsight.evaluation.reform_eval.sample import Sample

FORMAT = "sparsight-1"
PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


def write_published(task: EvaluationTask, path: str | Path, *, source: str, seed: int | None = None) -> None:
    """Write all samples of a task; the file appears whole or not at all.

    Args:
        task: The task; it is opened.
        path: JSON file.
        source: What the samples were made from, for the record.
        seed: That they were made with, for the record.

    Raises:
        ValueError: An id comes twice.
        CorruptRecord: A sample cannot be read.
    """
    task.open()
    header = {
        "version": FORMAT,
        "dataset_name": task.name,
        "dimension": task.dimension,
        "formulation": task.formulation,
        "source": source,
        "seed": seed,
        "fingerprint": task.fingerprint(),
        "instructs": task.instructions or [],
    }

    def write(part: Path) -> None:
        seen: set[str] = set()
        with part.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(header, indent=1)[: -len("\n}")] + ',\n "data": [')
            for number in range(len(task)):  # one at a time: all images together may not fit into memory
                sample = task[number]
                if sample.id in seen:
                    raise ValueError(f"task {task.name!r}: {task.where(number)} repeats id {sample.id!r}")
                seen.add(sample.id)
                stream.write((",\n  " if number else "\n  ") + json.dumps(_entry(sample)))
            stream.write("\n ]\n}\n")

    write_whole(Path(path), write)


def _entry(sample: Sample) -> dict[str, Any]:
    encoded = [_encoded(image) for image in sample.images]
    entry: dict[str, Any] = {
        "question_id": sample.id,
        "image": encoded[0] if len(encoded) == 1 else encoded,
        "question": sample.questions[0] if len(sample.questions) == 1 else list(sample.questions),
    }
    if sample.options:
        entry |= {"answer_options": list(sample.options), "answer": sample.answer}
    if sample.references:
        entry["answer_txt"] = list(sample.references)
    if sample.history:
        entry["history"] = [{"from": turn.role, "value": turn.text} for turn in sample.history]
    if sample.turn is not None:
        entry["turn"] = sample.turn
    if sample.dialogue is not None:
        entry["dialogue"] = sample.dialogue
    return entry


def _encoded(image: Image.Image) -> str:
    """An image as PNG in base64, without loss."""
    stream = io.BytesIO()
    # other modes (CMYK, floats) have no place in PNG
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")
