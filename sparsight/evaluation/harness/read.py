"""What lmms-eval wrote, as a report that ``sparsight compare`` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsight.common.errors import reason_of
from sparsight.common.text import read_json
from sparsight.evaluation.questions.rules import POINTS
from sparsight.evaluation.reform_eval.report import write_report
from sparsight.evaluation.reform_eval.scores import scores_of

_SCORES = ("score", "rating", "accuracy")  # of a sample, in what a task keeps for its own sums
_ASKED = ("doc_id", "doc_hash", "input", "target")  # what makes a question; equal hashes of documents do occur


class Recorded(NamedTuple):
    """One evaluation by lmms-eval.

    Args:
        results: Its file of results.
        samples: Its files of samples, by task.
    """

    results: Path
    samples: dict[str, Path]


def find_recorded(folder: Path) -> Recorded:
    """The newest evaluation in a folder that lmms-eval wrote into.

    Raises:
        FileNotFoundError: There is none, or its samples are missing.
    """
    found = sorted(folder.rglob("*_results.json"), key=lambda path: path.name)
    if not found:
        raise FileNotFoundError(f"{folder} holds no results of lmms-eval: a file that ends in _results.json")
    date = found[-1].name.removesuffix("_results.json")
    begun = f"{date}_samples_"
    samples = {
        path.name.removeprefix(begun).removesuffix(".jsonl"): path
        for path in sorted(found[-1].parent.glob(f"{begun}*.jsonl"))
    }
    if not samples:
        raise FileNotFoundError(f"{found[-1]} has no samples beside it: lmms-eval writes them with --log_samples")
    return Recorded(found[-1], samples)


def report_recorded(
    folder: Path, output: Path, *, model: Mapping[str, Any], about: Mapping[str, Any], date: str
) -> str:
    """Write ``report.json``, ``report.md`` and ``dimensions.png`` of what lmms-eval found.

    Args:
        folder: That lmms-eval wrote into.
        output: For the report.
        model: What the model is, with its ``name``.
        about: What else was asked for, such as backend and limit.
        date: When, for the title.

    Returns:
        The table.

    Raises:
        FileNotFoundError: There is nothing of lmms-eval.
        ValueError: A file is damaged, or holds no score of any sample.
    """
    recorded = find_recorded(folder)
    results: dict[str, Any] = read_json(recorded.results)
    tasks: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for name, file in recorded.samples.items():
        found = list(_answers(name, file))
        _name_points(found)
        hashes = [each.pop("hash") for each in found]
        answers += found
        tasks.append(
            {"name": name, "dimension": "benchmark", "formulation": "SingleChoice", "rule": "recorded"}
            | {"samples": len(found), "hash": hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}
        )
    protocol = {"runs": 1, "seed": 0, "by": "lmms-eval", "tasks": results.get("versions")}
    extra = {
        "complete": True,
        "answered": len(answers),
        "asked": len(answers),
        "environment": {"date": date},
        "lmms_eval": {"results": results.get("results"), **about},
    }
    scores = scores_of(answers, tasks, resamples=2000)
    content = {"model": dict(model), "tasks": tasks, "protocol": protocol}
    return write_report(output, about=content, extra=extra, answers=answers, scores=scores)


def _answers(task: str, file: Path) -> Iterator[dict[str, Any]]:
    """Samples as answers, with a hash of what each asks."""
    scored = False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            sample = json.loads(line)
            said = sample["filtered_resps"]
            found = dict(_scores(sample))
            answer = {
                "method": "generation",
                "task": task,
                "sample": str(sample["doc_id"]),
                "run": 0,
                "text": said if isinstance(said, str) else json.dumps(said),
                "references": [str(sample["target"])],
                "recorded": found,
                "hash": [sample.get(name) for name in _ASKED],
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}, line {number} is no sample of lmms-eval: {reason_of(error)}") from error
        scored = scored or bool(found)
        yield answer
    if not scored:
        raise ValueError(
            f"{file} holds no score of any sample, only what task {task} sums up itself: see lmms-eval's own table"
        )


def _name_points(answers: Sequence[dict[str, Any]]) -> None:
    """Add to the name of a score of a task what it is in, where its values are not all between 0 and 1."""
    outside = {name for each in answers for name, value in each["recorded"].items() if value < 0 or value > 1}
    for each in answers:
        each["recorded"] = {
            f"{name}{POINTS if name in outside else ''}": value for name, value in each["recorded"].items()
        }


def _scores(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a sample scored by each metric: a number, or one in what the task keeps for its own sums."""
    for name, value in sample.items():
        if name == "doc_id":
            continue
        if isinstance(value, bool | int | float):
            yield name, float(value)
        elif isinstance(value, Mapping):
            number = next((value[key] for key in _SCORES if isinstance(value.get(key), bool | int | float)), None)
            if number is None and "answer" in value:
                said = value.get("pred", value.get("parsed_pred"))
                number = None if said is None else value["answer"] in (said if isinstance(said, list) else [said])
            if number is not None:
                yield name, float(number)
