"""ReForm-Eval's published files: every layout is read, what is broken is named, and what is written comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.evaluation.published import PublishedTask
from datamodules.sources.records import CorruptRecord
from sparsight.evaluation.reform_eval.taxonomy import data_sets, find_data_set
from sparsight.lvlm.chat.conversation import Turn
from tests.tiny_published import CHOICE, OPEN, container, core, opened, picture, tdiuc, write

# -------------------------------------------------------------------------------------------------------- every layout
LIST = {"id": 5, "image": picture(), "question": "What?", "options": ["cat", "dog"], "answer": 1}
VQA = {"question_id": 5, "image_id": picture(), "question": "What?", "answer": "dog", "answer_options": ["cat", "dog"]}
SAMPLED = {"img": picture(), "anno": "a dog", "method": "Feed a dog", "options": ["cat", "dog"], "gt": 1}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("CIFAR10", [LIST], {"id": "5", "questions": ("What?",), "options": ("cat", "dog"), "answer": 1}),
        ("GQA", container(VQA), {"id": "5", "options": ("cat", "dog"), "answer": 1}),
        (
            "K-ViQuAE",
            container({**VQA, "context": "It barks: {x}"}),
            {"questions": ("What?\nBackground: It barks: {x}",)},
        ),
        (
            "A-OKVQAR",
            container({**VQA, "rationale": "tail", "rationale_options": ["wing", "tail"]}),
            {"questions": ("What?\nAnswer: dog\nWhy is that the answer?",), "options": ("wing", "tail"), "answer": 1},
        ),
        (
            "MOCHEG",
            container(
                {**{k: v for k, v in VQA.items() if k != "question_id"}, "instance_id": "i"}
                | {"claim": "A", "text_evidence": "B"}
            ),
            {
                "id": "i",
                "questions": ("Claim: A\nEvidence: B\nWhat do the picture and the evidence say of the claim?",),
            },
        ),
        (
            "VSR",
            container({**CHOICE, "question": ["What?", "Which?"]}),
            {"questions": ("What?", "Which?"), "answer": 1},
        ),
        ("MP3D", container({**CHOICE, "questions": ["Where?"]}), {"questions": ("Where?",)}),
        ("MEDIC", container(SAMPLED, dataset_name="MEDIC"), {"id": "0", "options": ("cat", "dog"), "answer": 1}),
        (
            "MSCOCO-ITM",
            container(SAMPLED),
            {
                "questions": ('Is this a true description of the picture: "a dog"?',),
                "options": ("no", "yes"),
                "answer": 1,
            },
        ),
        (
            "MSCOCO-ITS",
            container({**SAMPLED, "anno": ["a cat", "a dog"]}),
            {"options": ("a cat", "a dog"), "answer": 1},
        ),
        ("SNLI-VE", container({**SAMPLED, "gt": 2}, gt_info={}), {"options": ("yes", "not sure", "no"), "answer": 2}),
        ("CUTE80", container(OPEN), {"questions": ("Read it.", "What is written?"), "references": ("dog",)}),
        ("FUNSD", container({**OPEN, "question": "Sum?", "answer_txt": ["9", "nine"]}), {"references": ("9", "nine")}),
        ("TextVQA", container({**VQA, "answer": ["dog", "hound"]}), {"references": ("dog", "hound"), "options": ()}),
        ("MSCOCO", container({"img": picture(), "annos": ["A dog.", "Dogs."]}), {"references": ("A dog.", "Dogs.")}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_layout_gives_its_sample(tmp_path: Path, name: str, content: Any, expected: dict[str, Any]) -> None:
    write(tmp_path, name, content)
    task = opened(tmp_path, name)
    assert len(task) == 1
    sample = task[0]
    assert {field: getattr(sample, field) for field in expected} == expected
    assert [image.size for image in sample.images] == [(16, 12)]
    assert (task.name, task.dimension) == (name, find_data_set(name).dimension)


def test_instructions_of_the_file_are_the_tasks_unless_given(tmp_path: Path) -> None:
    write(tmp_path, "CLEVR", container(CHOICE, instructs=["Look.", "See."]))
    assert opened(tmp_path, "CLEVR").instructions == ["Look.", "See."]
    assert opened(tmp_path, "CLEVR", instructions=["Mine."]).instructions == ["Mine."]
    write(tmp_path, "CLEVR", container(CHOICE, instructs=[3]))
    with pytest.raises(ValueError, match=r"clevr_core_multiple_choice.json: `instructs` is \[3\]"):
        opened(tmp_path, "CLEVR")


# --------------------------------------------------------------------------------------------------------------- boxes
@pytest.mark.parametrize(
    ("name", "boxes", "inside", "edge"),
    [
        ("MSCOCO-GOI", [2, 3, 10, 6], (7, 6), [(2, 3), (11, 8)]),
        ("MSCOCO-MOS", [[2, 3, 10, 6], [0, 0, 2, 2]], (7, 6), [(2, 3), (11, 8)]),
        ("Grounded IC15", [2, 3, 12, 9], (7, 6), [(2, 3), (11, 8)]),
        ("RefCOCO", [[2, 3, 12.7, 9.2]], (7, 6), [(2, 3), (11, 8)]),
    ],
)
def test_boxes_are_drawn_red_first(
    tmp_path: Path, name: str, boxes: Any, inside: tuple[int, int], edge: list[tuple[int, int]]
) -> None:
    entry = {**CHOICE, **OPEN, "answer_options": ["cat", "dog"], "id": 1} | SAMPLED | {"bbox": boxes, "region": boxes}
    if name == "Grounded IC15":
        del entry["answer_options"]
    write(tmp_path, name, container(entry))
    task = opened(tmp_path, name, fields={"line": 1})
    image = task[0].images[0]
    assert [image.getpixel(place) for place in edge] == [(255, 0, 0)] * len(edge)
    assert image.getpixel(inside) == (7, 7, 7)
    assert image.getpixel((12, 9)) == (7, 7, 7)
    if name == "MSCOCO-MOS":
        assert image.getpixel((0, 0)) == (0, 128, 0)


def test_textocr_shows_only_what_the_box_holds(tmp_path: Path) -> None:
    write(tmp_path, "TextOCR", container({**OPEN, "bbox": [4, 2, 100, 5]}))
    assert opened(tmp_path, "TextOCR")[0].images[0].size == (12, 5)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "not four numbers"),
        ([20, 0, 4, 4], "outside the picture of 16 x 12"),
        ([[0, 0, 4, 4]] * 2, "2 boxes, too many to cut out"),
    ],
)
def test_impossible_boxes_are_refused(tmp_path: Path, box: Any, message: str) -> None:
    write(tmp_path, "TextOCR", container({**OPEN, "bbox": box}))
    task = opened(tmp_path, "TextOCR")
    with pytest.raises(CorruptRecord, match=rf"textocr_core_open_ended.json entry 0: .*{message}"):
        task[0]


# ----------------------------------------------------------------------------------------------- dialogues, joint files
DIALOGUE = {
    "version": "x",
    "split": "val",
    "data": {
        "questions": ["is it red", "how many?"],
        "answers": ["yes", "no", "2", "3"],
        "dialogs": [
            {
                "image_id": 9,
                "image_base64": picture(),
                "dialog": [
                    {"question": 0, "answer": 1, "answer_options": [0, 1]},
                    {"question": 1, "answer": 2, "answer_options": [3, 2]},
                ],
            }
        ],
    },
}


def test_rounds_of_a_dialogue_are_samples_with_a_history(tmp_path: Path) -> None:
    write(tmp_path, "VisDial", DIALOGUE)
    task = opened(tmp_path, "VisDial")
    first, second = task[0], task[1]
    assert (first.id, first.turn, first.history) == ("9_0", 0, ())
    assert first.dialogue == second.dialogue == "9"
    assert (first.questions, first.options, first.answer) == (("is it red?",), ("yes", "no"), 1)
    assert (second.id, second.turn, second.options, second.answer) == ("9_1", 1, ("3", "2"), 1)
    assert second.history == (Turn("user", "is it red?"), Turn("assistant", "no"))
    assert second.questions == ("how many?",) and len(second.images) == 1


def test_dialogue_that_names_no_text_is_refused(tmp_path: Path) -> None:
    broken = json.loads(json.dumps(DIALOGUE))
    broken["data"]["dialogs"][0]["dialog"][1]["answer"] = 4
    write(tmp_path, "VisDial", broken)
    task = opened(tmp_path, "VisDial")
    assert task[0].id == "9_0"
    with pytest.raises(CorruptRecord, match="entry 0 round 1: 4 is not the number of one of the file's `answers`"):
        task[1]


def test_tdiuc_joins_its_files_and_draws_wrong_options_by_seed(tmp_path: Path) -> None:
    tdiuc(tmp_path)
    task = opened(tmp_path, "TDIUC-Color")
    samples = [task[0], task[1]]
    assert [sample.id for sample in samples] == ["0", "2"]
    for sample in samples:
        assert sample.answer is not None and sample.options[sample.answer] == "red"
        assert len(set(sample.options)) == 4
    assert samples[0].options == opened(tmp_path, "TDIUC-Color")[0].options
    assert len({opened(tmp_path, "TDIUC-Color", seed=seed)[0].options for seed in range(5)}) > 1
    assert opened(tmp_path, "TDIUC-Color", seed=1).fingerprint() != task.fingerprint()


def test_question_without_annotation_is_named(tmp_path: Path) -> None:
    tdiuc(tmp_path)
    write(tmp_path, "huggingface_data/TDIUC/TDIUC_val_anns.json", [])
    with pytest.raises(CorruptRecord, match=r"entry 0: .*TDIUC_val_anns\.json has no entry with `question_id` 0"):
        opened(tmp_path, "TDIUC-Color")[0]


def test_counts_draw_other_counts(tmp_path: Path) -> None:
    write(tmp_path, "MSCOCO-OC", [{"Image_ID": picture(), "Question": "How many?", "Answer": 3}])
    write(tmp_path, "huggingface_data/MSCOCO/objectCounting_answer_list/answer_list.json", {"choice": [1, 2, 3, 4]})
    sample = opened(tmp_path, "MSCOCO-OC")[0]
    assert sorted(sample.options) == ["1", "2", "3", "4"]
    assert sample.answer is not None and sample.options[sample.answer] == "3"


# ------------------------------------------------------------------------------------------------------------- options
def test_limit_draws_entries_by_seed_and_keeps_dialogues_whole(tmp_path: Path) -> None:
    entries = [{**CHOICE, "question_id": number} for number in range(20)]
    drawn = []
    for seed in (0, 0, 1):
        task = core(tmp_path, *entries, limit=5, seed=seed)
        task.open()
        drawn.append([task[number].id for number in range(len(task))])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5 and drawn[0] == sorted(drawn[0], key=int)
    write(tmp_path, "VisDial", DIALOGUE)
    visdial = opened(tmp_path, "VisDial", limit=1)
    assert len(visdial) == 2 and visdial.dialogues() == [[0, 1]]


def test_questions_of_a_dialogue_may_be_entries_of_their_own(tmp_path: Path) -> None:
    talks = ("a", "b", None, "a")
    entries = [{**CHOICE, "question_id": n, "dialogue": talk} for n, talk in enumerate(talks)]
    task = core(tmp_path, *entries)
    task.open()
    assert task.dialogues() == [[0, 3], [1], [2]]
    assert [task[n].dialogue for n in range(len(task))] == list(talks)
    sizes = set()
    for seed in range(8):
        limited = core(tmp_path, *entries, limit=1, seed=seed)
        limited.open()
        sizes.add(tuple(limited[n].id for n in range(len(limited))))
    assert ("0", "3") in sizes and sizes <= {("0", "3"), ("1",), ("2",)}


def test_fingerprint_covers_data_and_options(tmp_path: Path) -> None:
    prints = {core(tmp_path, CHOICE).fingerprint() for _ in range(2)}
    prints.add(core(tmp_path, {**CHOICE, "answer": 0}).fingerprint())
    prints.add(core(tmp_path, CHOICE, fields={"id": None}).fingerprint())
    assert len(prints) == 3


def test_memory_holds_places_not_pictures(tmp_path: Path) -> None:
    import tracemalloc

    big = picture(size=(400, 400)) + "A" * 400_000
    task = core(tmp_path, *({**CHOICE, "image": big, "question_id": number} for number in range(10)))
    tracemalloc.start()
    task.open()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "own.json").stat().st_size
    assert size > 4_000_000
    assert kept < 0.05 * size
    assert peak < 3 * size


def test_prepare_asks_the_hub_for_the_files_of_the_data_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None, bool]] = []

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None, local_files_only: bool) -> str:
        assert repo_type == "dataset"
        asked.append((repo_id, filename, revision, local_files_only))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    task = PublishedTask("CIFAR10", revision="abc")
    task.prepare()
    write(tmp_path, "CIFAR10", [LIST])
    task.open()
    file = find_data_set("CIFAR10").file
    assert asked == [
        ("Aweminus/ReForm-Eval-Data", file, "abc", False),
        ("Aweminus/ReForm-Eval-Data", file, "abc", True),
    ]
    asked.clear()
    PublishedTask("TDIUC-Color").prepare()
    assert len(asked) == 3


def test_all_61_tasks_can_be_built() -> None:
    assert len({PublishedTask(found.name).name for found in data_sets()}) == 61
