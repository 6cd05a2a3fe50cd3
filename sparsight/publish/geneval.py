"""Results of GenEval's own scorer, read back."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from sparsight.common.text import BadText, parse_json, read_lines, read_text

FOLDER = "geneval"
RESULTS = "results.jsonl"
DRAWING = "drawing.txt"


def geneval_scores(path: Path) -> tuple[dict[str, float], str]:
    """Scores of a file that GenEval's ``evaluate_images.py`` wrote, one line an image (arXiv 2310.11513).

    Shares of right images from 0 to 1: ``geneval_<task>`` for every task, ``geneval_overall``, their mean, which papers
    report, ``geneval_images`` of all images, and ``geneval_prompts`` of prompts with a right image or more.

    Returns:
        The scores by name, and how they came about, with what a file ``drawing.txt`` beside the results says.

    Raises:
        ValueError: A line is no result, or there is none; the message names file and line.
    """
    tasks, prompts = defaultdict(list), defaultdict(list)
    for number, line in read_lines(path):
        task, prompt, correct = _result(line, f"{path}, line {number}")
        tasks[task].append(correct)
        prompts[prompt].append(correct)
    if not tasks:
        raise ValueError(f"{path} holds no result of GenEval's scorer")
    shares = {task: sum(each) / len(each) for task, each in tasks.items()}
    images = [correct for each in tasks.values() for correct in each]
    scores = {"overall": sum(shares.values()) / len(shares)} | shares
    scores |= {"images": sum(images) / len(images), "prompts": sum(map(any, prompts.values())) / len(prompts)}
    drawing = path.with_name(DRAWING)
    told = f"{read_text(drawing).strip()}; " if drawing.is_file() else ""
    protocol = f"{told}GenEval's scorer on {len(images)} images of {len(prompts)} prompts"
    return {f"geneval_{name}": share for name, share in scores.items()}, protocol


def _result(line: str, where: str) -> tuple[str, str, bool]:
    """Task, prompt with all that it asks for, and whether the image is right."""
    try:
        row: Any = parse_json(line)
    except BadText as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("correct"), bool):
        raise ValueError(f"{where}: expected an object with tag, metadata and correct, as GenEval's scorer writes")
    try:
        return str(row["tag"]), str(row["metadata"]), row["correct"]
    except KeyError as error:
        raise ValueError(f"{where}: there is no {error}, which GenEval's scorer writes") from error
