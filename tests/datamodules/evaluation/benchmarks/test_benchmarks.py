"""Standard benchmarks, read from small files in their published layouts: what is asked, and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import (
    GQATask,
    MMBenchTask,
    MMETask,
    MMMUTask,
    POPETask,
    ScienceQATask,
    SEEDTask,
    TextVQATask,
    VQAv2Task,
)
from datamodules.evaluation.benchmarks.benchmark import BRIEFLY, LETTER, BenchmarkTask
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.reform_eval.sample import Sample
from tests import tiny_benchmarks as tiny
from tests.tiny_benchmarks import write_rows


def put(task: BenchmarkTask, index: int, method: Method = "generation") -> str:
    sample = task[index]
    own = Variant(0, 0, tuple(range(len(sample.options))), "upper")
    sentence = task.asked_by(method, with_images=True)[0]
    (turn,) = task.prompt(sample, own, instruction=sentence, method=method, example=True).turns
    return turn.text


def weighed(task: BenchmarkTask, index: int) -> tuple[str, ...]:
    sample = task[index]
    return task.candidates(sample, Variant(0, 0, tuple(range(len(sample.options))), "upper"))


def samples(task: BenchmarkTask) -> list[Sample]:
    task.open()
    return [task[n] for n in range(len(task))]


def right(sample: Sample) -> str:
    assert sample.answer is not None
    return sample.options[sample.answer]


def test_pope_names_the_kind_of_each_question(tmp_path: Path) -> None:
    task = POPETask(str(write_rows(tmp_path / "pope.parquet", tiny.pope_rows())))
    found = samples(task)
    assert [right(each) for each in found] == ["Yes", "No"] * 3
    assert [each.categories for each in found] == [(k,) for k in ("random", "popular", "adversarial") for _ in "xx"]
    for method in ("generation", "likelihood"):
        assert put(task, 0, method) == f"<image>Is there a dog in the image?\n{BRIEFLY}"
    assert weighed(task, 1) == ("Yes", "No")
    assert [image.size for image in found[0].images] == [(24, 16)]


def test_popes_kinds_may_be_splits(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "category"} for row in tiny.pope_rows()]
    write_rows(tmp_path / "Full" / "popular-00000-of-00002.parquet", rows[:1])
    write_rows(tmp_path / "Full" / "popular-00001-of-00002.parquet", rows[1:2])
    write_rows(tmp_path / "Full" / "random-00000-of-00001.parquet", rows[2:])
    found = samples(POPETask(str(tmp_path), config="Full", split="popular"))
    assert [each.categories for each in found] == [("popular",), ("popular",)]


def test_mme_asks_twice_about_each_image(tmp_path: Path) -> None:
    task = MMETask(str(write_rows(tmp_path / "mme.parquet", tiny.mme_rows())))
    found = samples(task)
    assert task.dialogues() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [each.dialogue for each in found[:3]] == ["existence/existence/0.png"] * 2 + ["existence/existence/1.png"]
    assert put(task, 0) == "<image>Is this so? Please answer yes or no."
    assert (right(found[0]), right(found[1])) == ("Yes", "No")


@pytest.mark.parametrize("kind", [VQAv2Task, TextVQATask])
def test_vqa_keeps_what_ten_people_said(kind: type[VQAv2Task], tmp_path: Path) -> None:
    rows = tiny.vqa_rows()
    if kind is TextVQATask:  # a plain list, and no types
        rows = [
            {k: v for k, v in row.items() if k != "answer_type"} | {"answers": [a["answer"] for a in row["answers"]]}
            for row in rows
        ]
    task = kind(str(write_rows(tmp_path / "validation-00000-of-00001.parquet", rows).parent))
    found = samples(task)
    assert sorted(found[0].references) == sorted(tiny.VQA_PEOPLE)
    assert right(found[0]) == "net" and not {"a net", "Mesh", "fence", "no"} & {*found[0].options}
    assert right(found[1]) == "2" and all(option.isdigit() for option in found[1].options)
    assert found[2].options in (("yes", "no"), ("no", "yes")) or len(found[2].options) > 1
    assert found[0].categories == (() if kind is TextVQATask else ("other",))
    assert put(task, 3) == put(task, 3, "likelihood") == f"<image>What is thing 3?\n{BRIEFLY}"
    assert samples(kind(str(tmp_path), name="again"))[3].options == found[3].options  # drawn with the seed


def test_gqa_finds_images_under_their_ids(tmp_path: Path) -> None:
    questions, images = tiny.gqa_rows()
    write_rows(tmp_path / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", questions)
    write_rows(tmp_path / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", images)
    found = samples(GQATask(str(tmp_path)))
    assert [each.images[0].getpixel((0, 0))[0] for each in found] == [0, 100, 0, 100]  # type: ignore[index]
    assert [each.categories for each in found] == [("query",), ("verify",), ("query",), ("query",)]
    assert set(found[1].options) == {"yes", "no"} and right(found[1]) == "yes"
    assert right(found[0]) == "left" and set(found[0].options) == {"left", "table", "brown"}
    file = write_rows(tmp_path / "own.parquet", [row | {"image": tiny.picture(7)} for row in questions])
    assert samples(GQATask(str(file)))[0].images[0].getpixel((0, 0))[0] == 7  # type: ignore[index]


def test_scienceqa_shows_options_only_where_a_letter_is_wanted(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "scienceqa.parquet", tiny.scienceqa_rows()))
    task = ScienceQATask(file)
    found = samples(task)
    assert (right(found[0]), right(found[1])) == ("Maine", "ice")
    assert found[0].categories == ("social science", "with image", "with text", "grades 1-6")
    assert found[1].categories == ("natural science", "without context", "grades 7-12") and not found[1].images
    shown = "<image>Context: See the map.\nWhich is north?"
    options = "A. Texas\nB. Maine\nC. Ohio"
    assert put(task, 0) == f"{shown}\n{options}\n{LETTER}"
    assert put(task, 0, "likelihood") == shown and weighed(task, 0) == ("Texas", "Maine", "Ohio")
    marks = ScienceQATask(file, weigh="marks")
    assert put(marks, 0, "likelihood") == put(task, 0) and weighed(marks, 0) == ("A", "B", "C")


def test_seed_asks_about_frames(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "seed.parquet", tiny.seed_rows()))
    found = samples(SEEDTask(file))
    assert [len(each.images) for each in found] == [1, 3]
    assert [each.categories for each in found] == [("image", "instances counting"), ("video", "action recognition")]
    assert [right(each) for each in found] == ["two", "four"]
    assert len(samples(SEEDTask(file, kind="image"))) == 1


def test_mmbench_turns_options_around(tmp_path: Path) -> None:
    made = MMBenchTask(str(write_rows(tmp_path / "dev.parquet", tiny.mmbench_rows())))
    there = MMBenchTask(str(write_rows(tmp_path / "rotated.parquet", tiny.mmbench_rows(rotated=True))))
    for task in (made, there):
        found = samples(task)
        assert [each.options for each in found[:3]] == [
            ("cat", "dog", "cow"),
            ("dog", "cow", "cat"),
            ("cow", "cat", "dog"),
        ]
        assert [right(each) for each in found] == ["dog"] * 3 + ["blue"] * 2
        assert task.dialogues() == [[0, 1, 2], [3, 4]] and task.rule == "circular"
        assert [each.dialogue for each in found] == ["7"] * 3 + ["8"] * 2
        assert len({each.id for each in found}) == 5
        assert put(task, 3) == f"<image>Look at the sky.\nWhat is 8?\nA. red\nB. blue\n{LETTER}"
        assert weighed(task, 0) == ("A", "B", "C")
    once = MMBenchTask(str(tmp_path / "rotated.parquet"), circular=False)
    assert len(samples(once)) == 2 and once.rule == "choice"


def test_mmmu_has_choices_and_free_answers(tmp_path: Path) -> None:
    task = MMMUTask(str(write_rows(tmp_path / "validation.parquet", tiny.mmmu_rows())))
    choice, free = samples(task)
    assert (choice.id, choice.categories, free.categories) == ("validation_Art_Theory_1", ("Art_Theory",), ("Math",))
    assert len(choice.images) == 2 and len(free.images) == 1
    assert right(choice) == "the second" and not choice.references
    assert free.references == ("1,200", "twelve hundred")
    assert (
        put(task, 0)
        == put(task, 0, "likelihood")
        == (
            "<image><image>Which of <image 2> and <image 1> is older?\n"
            f"A. the first\nB. the second\nC. <image 1>'s frame\n{LETTER}"
        )
    )
    assert put(task, 1) == f"<image>What is x in <image 1>?\n{BRIEFLY}"
    assert weighed(task, 0) == ("A", "B", "C")


def test_columns_may_be_called_otherwise(tmp_path: Path) -> None:
    rows = [{"prompt" if k == "question" else k: v for k, v in row.items()} for row in tiny.pope_rows()]
    task = POPETask(str(write_rows(tmp_path / "pope.parquet", rows)), columns={"question": "prompt"})
    assert samples(task)[0].questions == ("Is there a dog in the image?",)


def test_rows_saved_to_disk_are_read_too(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows: Any = Dataset.from_list(tiny.pope_rows())
    DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
    assert len(samples(POPETask(str(tmp_path / "saved")))) == 6
