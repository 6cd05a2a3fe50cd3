"""Questions about captions, words and what others asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    Conversation,
    CorruptRecord,
    EmojiRecords,
    FolderRecords,
    HuggingFaceRecords,
    LabelledQuestions,
    MixedRecords,
    Record,
    TextQuestions,
    Turn,
)
from datamodules.evaluation.tasks.captioning import CaptioningTask
from datamodules.evaluation.tasks.questions import QuestionsTask
from datamodules.evaluation.tasks.reading import ReadingTask
from datamodules.evaluation.tasks.rendered_text import RenderedTextRecords
from tests.tiny_font import save_emoji_font
from tests.tiny_records import (
    BASIC,
    Squares,
    asked,
    captioned,
    right,
    samples,
    talks,
)


def test_captions_are_references() -> None:
    task = CaptioningTask(captioned("a red cat", "", "dogs"), **BASIC | {"dimension": "description"})
    assert task.formulation == "Generation"
    assert {sample.id: sample.references for sample in samples(task)} == {"c0": ("a red cat",), "c2": ("dogs",)}


def test_reading_takes_the_caption_even_where_there_are_labels() -> None:
    class Both(Squares):
        def __getitem__(self, index: int) -> Record:
            record = super().__getitem__(index)
            return Record(record.id, record.image, record.label, f"word {index}")

    assert {sample.references for sample in samples(ReadingTask(Both(), **BASIC))} == {
        (f"word {index}",) for index in range(60)
    }


def test_words_are_offered_beside_similar_spellings() -> None:
    words = ["house", "mouse", "horse", "hose", "winter", "splinter", "green", "queen"]
    found = samples(ReadingTask(RenderedTextRecords(words, side=64), formulation="SingleChoice", options=3, **BASIC))
    options = {right(sample): set(sample.options) for sample in found}
    assert set(options) == set(words)
    assert options["house"] <= {"house", "mouse", "horse", "hose"} and "splinter" in options["winter"]


def test_words_are_legible_and_vary() -> None:
    records = RenderedTextRecords(side=96)
    boxes, grounds = set(), set()
    for index in range(60):
        record = records[index]
        pixels_HW3 = np.asarray(record.needed_image, dtype=int)
        assert record.caption == records.words[index] == records.caption_of(index)
        ground = pixels_HW3[0, 0]
        rows, columns = np.nonzero(np.abs(pixels_HW3 - ground).sum(axis=2))
        assert min(rows.min(), columns.min()) >= 1 and max(rows.max(), columns.max()) <= 94, "nothing is cut off"
        assert np.abs(pixels_HW3.mean(axis=2) - ground.mean()).max() > 80, "there is contrast"
        assert np.ptp(columns) > 14
        boxes.add((rows.min(), columns.min(), np.ptp(columns)))
        grounds.add(tuple(ground))
    assert len(boxes) == len(grounds) == 60
    assert (np.asarray(RenderedTextRecords(side=96, seed=1)[0].image) != np.asarray(records[0].image)).any()
    assert len(set(records.words)) == len(records.words) > 300 and records.size(0) == (96, 96)


def test_texts_that_cannot_be_rendered_are_refused() -> None:
    with pytest.raises(ValueError, match="words is empty"):
        RenderedTextRecords([])
    with pytest.raises(ValueError, match="words holds 'caf\xe9'; allowed are texts of one line"):
        RenderedTextRecords(["fine", "caf\xe9"])
    with pytest.raises(ValueError, match="side is 8"):
        RenderedTextRecords(side=8)
    with pytest.raises(ValueError, match="is too long for a picture of 64 pixels"):
        RenderedTextRecords(["a sentence of many words"], side=64).open()


def test_candidates_that_come_with_a_question_are_its_options() -> None:
    source = LabelledQuestions(Squares(), tasks=["choice", "comparison"])
    conversations = {source[index].id: source[index].conversation for index in range(60)}
    for sample in samples(QuestionsTask(source, **BASIC)):
        talk = conversations[sample.id]
        assert talk is not None
        assert set(sample.options) == set(talk.candidates) and right(sample) == talk.turns[1].text
        assert sample.questions == (talk.turns[0].text,) and len(sample.images) == len(talk.images)


def test_questions_without_candidates_get_some() -> None:
    source = talks(
        asked("Is it on? Answer in one word.", "yes"),
        asked("How many? Answer in one word.", "7"),
        *(asked(f"Which colour has the {n}? Answer in one word.", n) for n in ("rose", "nose", "robin", "window")),
    )
    task = QuestionsTask(source, options=3, similar="spelling", remove=[" Answer in one word."], **BASIC)
    found = {sample.questions[0]: sample for sample in samples(task)}
    assert set(found["Is it on?"].options) == {"yes", "no"}
    assert set(map(int, found["How many?"].options)) in ({5, 6, 7}, {6, 7, 8}, {7, 8, 9})
    assert "nose" in found["Which colour has the rose?"].options
    assert not {"yes", "7"} & {
        option for question in list(found) if "colour" in question for option in found[question].options
    }
    few = QuestionsTask(source, options=5, **BASIC)
    with pytest.raises(CorruptRecord, match=r"record \d of Pictures: '\w+' needs 4 wrong options, there are 3"):
        samples(few)


def test_text_alone_is_enough() -> None:
    hints = [" Answer in one word.", " Answer with a number."]
    found = samples(QuestionsTask(TextQuestions(), remove=hints, name="text", dimension="text_only"))
    assert len(found) == len(TextQuestions()) and not any(sample.images or sample.history for sample in found)
    capital = next(sample for sample in found if sample.questions[0] == "What is the capital of France?")
    assert right(capital) == "Paris" and len(capital.options) == 4


def test_earlier_turns_are_history_and_their_pictures_come_first() -> None:
    picture = Image.new("RGB", (2, 2))
    turns = (
        Turn("user", "<image>\nWhat is this?"),
        Turn("assistant", "A dot."),
        Turn("user", "Is it red?"),
        Turn("assistant", "no"),
    )
    task = QuestionsTask(talks(Conversation(turns, (picture,))), **BASIC)
    assert task[0].history == (Turn("user", "What is this?"), turns[1]) and task[0].turn == 1
    assert task[0].questions == ("Is it red?",) and task[0].images == (picture,)


def test_pictures_of_question_and_history_come_first_in_their_order() -> None:
    pictures = Image.new("RGB", (2, 2)), Image.new("RGB", (3, 3))
    turns = (
        Turn("user", "<image>What is this?"),
        Turn("assistant", "A dot."),
        Turn("user", "<image>And this?"),
        Turn("assistant", "yes"),
    )
    sample = QuestionsTask(talks(Conversation(turns, pictures)), **BASIC)[0]
    assert sample.questions == ("And this?",) and sample.images == pictures
    assert [turn.text for turn in sample.history] == ["What is this?", "A dot."]


def test_records_without_a_question_are_reported() -> None:
    with pytest.raises(CorruptRecord, match="record 0 of Pictures: it has no conversation; make some with Labelled"):
        QuestionsTask(captioned("one"), **BASIC)[0]
    greeting = Conversation((Turn("system", "Be kind."), Turn("assistant", "Hello.")))
    with pytest.raises(CorruptRecord, match="its last answer follows no question"):
        QuestionsTask(talks(greeting), **BASIC)[0]


def test_captions_are_known_without_decoding_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    emoji = EmojiRecords(save_emoji_font(tmp_path / "font.ttf", {"\U0001f600": (1, 2, 3), "\U0001f34e": (4, 5, 6)}))
    (tmp_path / "folder").mkdir()
    for number in range(2):
        Image.new("RGB", (2, 2)).save(tmp_path / f"folder/{number}.png")
        (tmp_path / f"folder/{number}.txt").write_text(f"picture {number}")
    folder = FolderRecords(tmp_path / "folder")
    rows = {"image": [str(tmp_path / f"folder/{n}.png") for n in range(2)], "text": ["first", None]}
    features = Features({"image": ImageFeature(), "text": Value("string")})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "rows")
    hub = HuggingFaceRecords(str(tmp_path / "rows"), caption_column="text")
    mixed = MixedRecords([emoji, folder])
    found = [[source[index].caption for index in range(len(source))] for source in (emoji, folder, mixed)]
    for module in ("emoji", "folder", "huggingface"):
        monkeypatch.setattr(f"datamodules.sources.{module}.decode_image", None)
    assert [[source.caption_of(index) for index in range(len(source))] for source in (emoji, folder, mixed)] == found
    assert hub.caption_of(0) == "first"
    with pytest.raises(CorruptRecord, match="'text' is empty"):
        hub.caption_of(1)
    assert HuggingFaceRecords(str(tmp_path / "rows")).caption_of(0) is None
