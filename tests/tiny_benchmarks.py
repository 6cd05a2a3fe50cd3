"""Benchmarks of a few questions, as parquet files in the published layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

VQA_PEOPLE = ["net"] * 3 + ["a net"] * 2 + ["Mesh"] * 2 + ["fence", "no", "no"]


def picture(grey: int = 90, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, (grey, 10, 200))


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as on the hub, where the schema says which columns are images."""
    from datasets import Dataset

    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list([dict(row) for row in rows]).to_parquet(str(file))
    return file


def pope_rows() -> list[dict[str, Any]]:
    kinds = ("random", "random", "popular", "popular", "adversarial", "adversarial")
    return [
        {
            "id": str(n),
            "question_id": str(n),
            "question": f"Is there a {thing} in the image?",
            "answer": "yes" if n % 2 == 0 else "no",
            "image_source": "COCO_val2014",
            "image": picture(n),
            "category": kind,
        }
        for n, (kind, thing) in enumerate(zip(kinds, ("dog", "cat", "car", "cup", "bed", "bus"), strict=True))
    ]


def mme_rows() -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"{category}/{n}.png",
            "image": picture(n),
            "question": f"Is this {thing}? Please answer yes or no.",
            "answer": "Yes" if thing == "so" else "No",
            "category": category,
        }
        for category in ("existence", "code_reasoning")
        for n in range(2)
        for thing in ("so", "not so")
    ]


def vqa_rows() -> list[dict[str, Any]]:
    given = [VQA_PEOPLE, ["2"] * 10, ["yes"] * 6 + ["no"] * 4, ["blue"] * 10, ["dark red"] * 10]
    return [
        {
            "question_type": "what",
            "multiple_choice_answer": people[0],
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": k} for k, text in enumerate(people, 1)
            ],
            "image_id": n,
            "answer_type": kind,
            "question_id": 10 * n,
            "question": f"What is thing {n}?",
            "image": picture(n),
        }
        for n, (people, kind) in enumerate(zip(given, ("other", "number", "yes/no", "other", "other"), strict=True))
    ]


def gqa_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    answers = ("left", "yes", "table", "brown")
    questions = [
        {
            "id": f"q{n}",
            "imageId": f"n{n % 2}",
            "question": f"Where is thing {n}?",
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "types": {"structural": "verify" if answer == "yes" else "query", "semantic": "rel", "detailed": "x"},
        }
        for n, answer in enumerate(answers)
    ]
    return questions, [{"id": f"n{n}", "image": picture(100 * n)} for n in range(2)]


def scienceqa_rows() -> list[dict[str, Any]]:
    common = {"task": "closed choice", "topic": "maps", "category": "c", "skill": "s", "lecture": "", "solution": ""}
    return [
        common
        | {
            "image": picture(1),
            "question": "Which is north?",
            "choices": ["Texas", "Maine", "Ohio"],
            "answer": 1,
            "hint": "See the map.",
            "grade": "grade2",
            "subject": "social science",
        },
        common
        | {
            "image": None,
            "question": "Which is warm?",
            "choices": ["ice", "fire"],
            "answer": 0,
            "hint": "",
            "grade": "grade8",
            "subject": "natural science",
        },
    ]


def seed_rows() -> list[dict[str, Any]]:
    return [
        {
            "answer": letter,
            "choice_a": "one",
            "choice_b": "two",
            "choice_c": "three",
            "choice_d": "four",
            "data_id": str(n),
            "data_type": kind,
            "question_id": str(n),
            "question_type_id": number,
            "image": [picture(n)] * images,
            "segment": None,
            "question": f"How many in {n}?",
        }
        for n, (letter, kind, number, images) in enumerate((("B", "image", 5, 1), ("D", "video", 10, 3)))
    ]


def mmbench_rows(*, rotated: bool = False) -> list[dict[str, Any]]:
    """Questions of three and two options; as the hub has them, every rotation is a row of its own."""
    rows: list[dict[str, Any]] = []
    for index, options, right in ((7, ["cat", "dog", "cow"], "dog"), (8, ["red", "blue"], "blue")):
        for turn in range(len(options) if rotated else 1):
            turned = options[turn:] + options[:turn]
            cells = dict(zip("ABCD", [*turned, None, None], strict=False))
            rows.append(
                {
                    "index": index + 1_000_000 * turn,
                    "question": f"What is {index}?",
                    "hint": "nan" if index == 7 else "Look at the sky.",
                    **cells,
                    "answer": "ABCD"[turned.index(right)],
                    "category": "identity",
                    "image": picture(index),
                    "source": "s",
                    "L2-category": "finegrained_perception",
                    "comment": None,
                    "split": "dev",
                }
            )
    return rows


def box_rows() -> list[dict[str, Any]]:
    return [{"image": picture(1, (40, 20)), "phrase": "the cup", "bbox": [4.0, 2.0, 12.0, 8.0]}]


def mmmu_rows() -> list[dict[str, Any]]:
    pictures = {f"image_{n}": None for n in range(1, 8)}
    return [
        pictures
        | {
            "id": "validation_Art_Theory_1",
            "question": "Which of <image 2> and <image 1> is older?",
            "options": "['the first', 'the second', \"<image 1>'s frame\"]",
            "answer": "B",
            "question_type": "multiple-choice",
            "subfield": "x",
            "image_1": picture(1),
            "image_2": picture(2),
        },
        pictures
        | {
            "id": "validation_Math_3",
            "question": "What is x in <image 1>?",
            "options": "[]",
            "answer": "['1,200', 'twelve hundred']",
            "question_type": "open",
            "subfield": "x",
            "image_1": picture(3),
            "image_2": None,
        },
    ]
