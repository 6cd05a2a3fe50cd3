"""Tasks made of records: determined by the seed, fair, and with clear words about what they cannot use."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from jsonargparse import ArgumentParser
from PIL import Image

from datamodules import (
    CorruptRecord,
    FolderRecords,
    HuggingFaceRecords,
    IdxRecords,
    LabelledQuestions,
    ParquetRecords,
    TextQuestions,
)
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.tasks.captioning import CaptioningTask
from datamodules.evaluation.tasks.colour import ColourTask
from datamodules.evaluation.tasks.counting import CountingTask
from datamodules.evaluation.tasks.matching import MatchingTask
from datamodules.evaluation.tasks.naming import NamingTask
from datamodules.evaluation.tasks.position import PositionTask
from datamodules.evaluation.tasks.questions import QuestionsTask
from datamodules.evaluation.tasks.reading import ReadingTask
from datamodules.evaluation.tasks.reformulated import ReformulatedTask
from datamodules.evaluation.tasks.rendered_text import RenderedTextRecords
from tests.tiny_files import write_idx
from tests.tiny_records import (
    BASIC,
    Squares,
    asked,
    captioned,
    is_uniform,
    plainly,
    right,
    samples,
    talks,
    two_coloured,
)


def every_task(seed: int = 0) -> list[ReformulatedTask]:
    basic = BASIC | {"seed": seed}
    return [
        NamingTask(Squares(), **basic),
        NamingTask(Squares(named_by="caption"), similar="spelling", **basic),
        MatchingTask(Squares(), **basic),
        MatchingTask(Squares(), kind="choice", **basic),
        CountingTask(Squares(), canvas_size=80, side=10, **basic),
        PositionTask(Squares(), canvas_size=40, **basic),
        PositionTask(Squares(), kind="what", layout="halves", canvas_size=40, **basic),
        ColourTask(Squares(), **basic),
        CaptioningTask(Squares(named_by="caption"), **basic | {"dimension": "description"}),
        ReadingTask(RenderedTextRecords(["house", "mouse", "horse", "hose"], side=64), **basic),
        ReadingTask(RenderedTextRecords(side=96), formulation="SingleChoice", limit=40, **basic),
        QuestionsTask(LabelledQuestions(Squares()), **basic),
        QuestionsTask(TextQuestions(), **basic),
    ]


@pytest.mark.parametrize("number", range(len(every_task())))
def test_samples_depend_on_the_seed_and_not_on_order_or_process(number: int) -> None:
    task, other = every_task()[number], pickle.loads(pickle.dumps(every_task()[number]))
    forwards = [plainly(sample) for sample in samples(task)]
    backwards = [plainly(other[index]) for index in reversed(range(len(other)))]
    assert backwards[::-1] == forwards
    reseeded = every_task(seed=1)[number]
    assert [plainly(sample) for sample in samples(reseeded)] != forwards
    assert reseeded.fingerprint() != task.fingerprint() == other.fingerprint()


def test_other_class_names_are_another_task(tmp_path: Path) -> None:
    """Names are what options say, though a source may count only its images and numbers."""
    images = write_idx(tmp_path / "images", np.zeros((6, 4, 4), dtype=np.uint8))
    labels = write_idx(tmp_path / "labels", np.arange(6, dtype=np.uint8) % 3)

    def fingerprints(*names: str) -> list[str]:
        source = IdxRecords(images, labels, list(names))
        choice = NamingTask(source, options=3, **BASIC)
        return [choice.fingerprint(), QuestionsTask(LabelledQuestions(source), **BASIC).fingerprint()]

    first, second = fingerprints("coat", "shirt", "bag"), fingerprints("coat", "shirt", "boot")
    assert first == fingerprints("coat", "shirt", "bag")
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("number", range(len(every_task())))
def test_samples_hold_together(number: int) -> None:
    task = every_task()[number]
    found = samples(task)
    assert len({sample.id for sample in found}) == len(found) == len(task)
    for sample in found:
        sample.check(task.formulation)
        assert not any("{" in question for question in sample.questions)
        assert len(set(sample.questions)) == len(sample.questions) == len(task.wordings)


@pytest.mark.parametrize(
    ("task", "places"),
    [
        (NamingTask(Squares(600), **BASIC), 4),
        (NamingTask(Squares(600), options=3, similar="spelling", **BASIC), 3),
        (MatchingTask(Squares(600), **BASIC), 2),
        (CountingTask(Squares(600), canvas_size=80, side=10, **BASIC), 4),
        (PositionTask(Squares(600), canvas_size=40, **BASIC), 4),
        (QuestionsTask(talks(*(asked("?", str(n % 7)) for n in range(600))), **BASIC), 4),
        (ReadingTask(RenderedTextRecords(side=96), formulation="SingleChoice", **BASIC), 4),
    ],
)
def test_the_right_option_is_anywhere(task: ReformulatedTask, places: int) -> None:
    found = samples(task)
    counts = Counter(sample.answer for sample in found if sample.answer is not None)
    assert {len(sample.options) for sample in found} == {places}
    assert sum(counts.values()) == len(found) and is_uniform(counts, places)


def test_a_limit_takes_the_first_of_a_drawn_order() -> None:
    ids = [sample.id for sample in samples(NamingTask(Squares(), **BASIC))]
    limited = NamingTask(Squares(), limit=7, **BASIC)
    assert [sample.id for sample in samples(limited)] == ids[:7]
    assert ids != [f"r{index}" for index in range(60)] and set(ids) == {f"r{index}" for index in range(60)}


ANSWERS = talks(*(asked("?", f"thing {n}") for n in range(30)))


@pytest.mark.parametrize("task", [*every_task(), QuestionsTask(ANSWERS, **BASIC)])
def test_a_limit_changes_no_question(task: ReformulatedTask) -> None:
    limited = pickle.loads(pickle.dumps(task))
    limited.limit = 3
    assert len(limited) == 3 < len(task)
    assert [plainly(limited[n]) for n in range(3)] == [plainly(task[n]) for n in range(3)]


def test_a_record_left_out_turns_no_other_answer() -> None:
    """Whether a text matches does not hang on what else is asked about."""
    captions = [f"word{n}" for n in range(40)]
    whole, without = (captioned(*captions[:20], text, *captions[20:]) for text in ("short", "a long text"))
    found = [
        {s.id: right(s) for s in samples(MatchingTask(source, max_words=1, **BASIC))} for source in (whole, without)
    ]
    assert found[0].pop("c20") in ("yes", "no") and found[0] == found[1]


def test_a_record_that_cannot_be_read_is_reported_with_its_position() -> None:
    task = NamingTask(Squares(named_by="caption", corrupt=(4,)), **BASIC)
    place = [task._chosen[index] for index in range(len(task))].index(4)
    assert len(task) == 60
    with pytest.raises(CorruptRecord, match="record 4 of Squares: torn"):
        task[place]
    assert task[place - 1]


def test_wordings_have_the_fields_of_the_task() -> None:
    task = PositionTask(Squares(), wordings=["Find {name}!", "{name}: where?"], canvas_size=40, **BASIC)
    assert all("Find" in sample.questions[0] and "thing: where?" in sample.questions[1] for sample in samples(task))
    with pytest.raises(ValueError, match=r"wordings of task 'some' .* these fields: \{name\}"):
        PositionTask(Squares(), wordings=["Find it!"], **BASIC)
    with pytest.raises(ValueError, match="these fields: none"):
        NamingTask(Squares(), wordings=["What is {name}?"], **BASIC)


def test_options_out_of_range_are_refused() -> None:
    for make, message in (
        (lambda: NamingTask(Squares(), limit=0, **BASIC), "limit of task 'some' is 0"),
        (lambda: NamingTask(Squares(), options=1, **BASIC), "options is 1"),
        (lambda: NamingTask(Squares(), max_words=0, **BASIC), "max_words of task 'some' is 0"),
        (lambda: MatchingTask(Squares(), kind="both", **BASIC), "kind is 'both'; allowed: yes_no, choice"),
        (lambda: PositionTask(Squares(), layout="ring", **BASIC), "layout is 'ring'; allowed: corners, halves"),
        (lambda: PositionTask(Squares(), canvas_size=9, **BASIC), "canvas_size is 9"),
        (lambda: CountingTask(Squares(), low=0, **BASIC), "low is 0 and high 8"),
        (lambda: CountingTask(Squares(), low=6, high=8, **BASIC), "with 4 numbers from low to high"),
        (lambda: CountingTask(Squares(), others=-1, **BASIC), "others is -1"),
        (lambda: CountingTask(Squares(), high=14, **BASIC), "14 copies and 3 others of side 72 .* has room for 16"),
        (lambda: ColourTask(Squares(), dominance=0.4, **BASIC), "dominance is 0.4"),
        (lambda: ColourTask(Squares(), options=8, **BASIC), "options is 8; allowed: 2 to 7"),
        (lambda: ReadingTask(Squares(), formulation="KIEOpenEnded", **BASIC), "formulation is 'KIEOpenEnded'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_sources_that_lack_what_is_asked_about_are_refused() -> None:
    for make, message in (
        (
            lambda: NamingTask(Squares(named_by=""), **BASIC),
            "needs labels with class names, or captions, which Squares",
        ),
        (
            lambda: CaptioningTask(Squares(), **BASIC | {"dimension": "description"}),
            "needs captions, which Squares does not have",
        ),
        (lambda: NamingTask(Squares(), options=7, **BASIC), "needs 7 different names, the source has 6"),
        (lambda: CountingTask(Squares(), others=6, **BASIC), "needs 7 different names"),
        (lambda: PositionTask(captioned("a b", "c d", "e f"), **BASIC), "needs 4 different names, the source has 3"),
        (lambda: NamingTask(captioned("one two", "three four"), max_words=1, options=2, **BASIC), "the source has 0"),
        (lambda: ColourTask(two_coloured(), **BASIC), "none of 1 records can be asked about"),
    ):
        with pytest.raises(ValueError, match=message):
            make().open()


def test_tasks_are_made_by_configs() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=EvaluationTask)
    source = {"class_path": "datamodules.TextQuestions", "init_args": {"kinds": ["capitals"]}}
    options = {"source": source, "remove": [" Answer in one word."], "limit": 3, **BASIC}
    config = {"class_path": "datamodules.evaluation.tasks.questions.QuestionsTask", "init_args": options}
    task = parser.instantiate(parser.parse_object({"task": config})).task
    assert len(task) == 3 and task[0].questions[0].startswith("What is the capital of")
    config["init_args"] = options | {"default_wordings": ["x"]}
    with pytest.raises(Exception, match="'default_wordings' is not accepted"):
        parser.parse_object({"task": config})


def test_folders_rows_and_tables_with_labels_are_asked_about(tmp_path: Path) -> None:
    """What users have: one folder for each class, a data set on disk, parquet files."""
    colours = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
    for name, colour in colours.items():
        for number in range(2):
            (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), colour).save(tmp_path / f"folder/{name}/{number}.png")
    paths = sorted(map(str, (tmp_path / "folder").rglob("*.png")))
    labels = [sorted(colours).index(Path(path).parent.name) for path in paths]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=sorted(colours))})
    rows = Dataset.from_dict({"image": paths, "label": labels}, features=features)
    rows.save_to_disk(tmp_path / "rows")
    bytes_of = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    names = [Path(path).parent.name for path in paths]
    Dataset.from_dict({"image": bytes_of, "label": names}).to_parquet(tmp_path / "table.parquet")
    sources = [
        FolderRecords(tmp_path / "folder"),
        HuggingFaceRecords(str(tmp_path / "rows"), label_column="label"),
        ParquetRecords(str(tmp_path / "table.parquet"), label_column="label"),
    ]
    for source in sources:
        found = samples(NamingTask(source, options=3, **BASIC))
        assert len(found) == 6
        for sample in found:
            pixel = np.asarray(sample.images[0].convert("RGB"))[0, 0]
            assert tuple(pixel) == colours[right(sample)]
            assert set(sample.options) == set(colours)
