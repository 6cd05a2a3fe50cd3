"""Conversations of LLaVA-format files, Hugging Face data sets and labelled images: what is read and refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from datamodules import (
    Conversation,
    ConversationRecords,
    CorruptRecord,
    HuggingFaceConversations,
    ImageDataModule,
    Record,
    Turn,
)
from datamodules.conversations.question_template import QuestionTemplate
from tests.tiny_chats import entry
from tests.tiny_files import png, write_files


def write(folder: Path, entries: list[Any], *, name: str = "talks.json") -> ConversationRecords:
    """A file of entries, and two images of 4 x 4 pixels."""
    write_files(folder, {"images/a.png": png(7), "images/sub/b.png": png(9), "images/torn.png": png(1)[:-30]})
    lines = "\n".join(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in entries)
    (folder / name).write_text(lines if name.endswith("l") else json.dumps(entries))
    return ConversationRecords(folder / name, images=folder / "images")


GOOD = [
    entry("<image>\nWhat?", "A bag.", "Sure?", "Yes.", image="a.png"),
    entry("Compare <image> with <image>", "Same.", image=["a.png", "sub/b.png"]),
    entry("Say yes.", "yes"),
    {"conversations": [{"from": "system", "value": "Be short."}, *entry("Hello\u2028you", "Hi")["conversations"]]},
]


# --------------------------------------------------------------------------------------------------------- LLaVA format
@pytest.mark.parametrize("name", ["talks.json", "talks.jsonl"])
def test_file_gives_turns_and_pictures(tmp_path: Path, name: str) -> None:
    source = write(tmp_path, GOOD, name=name)
    assert len(source) == 4 and source.classes is None
    first, second, third, fourth = (source[index] for index in range(4))
    assert first.conversation is not None and second.conversation is not None and fourth.conversation is not None
    assert first.conversation.turns == (
        Turn("user", "<image>\nWhat?"),
        Turn("assistant", "A bag."),
        Turn("user", "Sure?"),
        Turn("assistant", "Yes."),
    )
    assert [image.getpixel((0, 0)) for image in second.conversation.images] == [7, 9]
    assert first.image is first.conversation.images[0] and third.image is None
    assert [turn.role for turn in fourth.conversation.turns] == ["system", "user", "assistant"]
    assert fourth.conversation.turns[1].text == "Hello\u2028you"
    assert third.id == ("talks.json entry 2" if name == "talks.json" else "talks.jsonl line 3")
    assert [source.extent(index) for index in range(4)] == [(1, 28), (2, 33), (0, 11), (0, 20)]


def test_evaluation_fields_are_read_by_number_and_by_text(tmp_path: Path) -> None:
    facts = {"candidates": ["bag", "coat"], "task": "naming"}
    source = write(
        tmp_path, [entry("What?", "coat", **facts, answer=1), entry("What?", "coat", **facts, answer="coat")]
    )
    for record in (source[0], source[1]):
        assert record.conversation is not None
        assert (record.conversation.answer, record.conversation.task) == (1, "naming")
        assert record.conversation.candidates == ("bag", "coat")


ASKED = {"candidates": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"conversations": [', "not JSON: .*"),
        ("[1]", "not a JSON object"),
        ({"id": 1}, "`conversations` is no list of turns"),
        ({"conversations": ["hello"]}, "`conversations` is no list of turns"),
        (entry("<image>What?", "A bag.", image="none.png"), "image 'none.png': FileNotFoundError.*"),
        (entry("<image>What?", "A bag.", image="torn.png"), "image 'torn.png': .*"),
        (entry("<image>What?", "A bag.", image="../talks.jsonl"), "image '../talks.jsonl' lies outside .*"),
        (entry("<image>What?", "A bag.", image=3), "`image` is 3, neither a file name nor a list of such"),
        (entry("<image>What?", " \n", image="a.png"), "turn 2, an answer, is empty"),
        (entry("What?", "A bag.", image="a.png"), r"the texts have 0 places for images \(<image>\), but 1 are given"),
        (entry("<image>What?", "A bag."), r"the texts have 1 places for images \(<image>\), but 0 are given"),
        (entry("What?", "<image>"), "turn 2, an answer, holds <image>; only questions may"),
        (entry("What?"), r"there is no answer \(assistant turn\), so nothing can be learnt"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "unknown role 'robot'; known: human, user, gpt, .*"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "unknown role .*"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "a turn of 'gpt' holds None, not a text"),
        (entry("Which?", "c", **ASKED), "candidate 0 is 'a', but the last answer is 'c'"),
        (entry("Which?", "a", candidates=["a", "a"], answer=0), "the candidates are not all different, .*"),
        (entry("Which?", "a", candidates=["a", "b"], answer=2), "answer is 2, not the position of one of 2 candidates"),
        (entry("Which?", "a", candidates=["a", "b"], answer="c"), "`answer` is 'c', which is not among `candidates`.*"),
        (entry("Which?", "a", candidates=["a", "b"]), "`answer` is None, neither the number nor the text .*"),
        (entry("Which?", "a", candidates="ab", answer=0), "`candidates` is 'ab', not a list of texts"),
    ],
)
def test_bad_entry_is_corrupt_with_its_line_and_leaves_the_others_alone(tmp_path: Path, bad: Any, reason: str) -> None:
    source = write(tmp_path, [GOOD[0], "", bad, GOOD[2]], name="talks.jsonl")
    assert len(source) == 3 and source[0].image is not None and source[2].image is None
    with pytest.raises(CorruptRecord, match=rf"^talks\.jsonl line 3: {reason}$"):
        source[1]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_thoughts_before_answers_are_read_under_their_usual_names(tmp_path: Path, name: str) -> None:
    good, bad = entry("Say yes.", "yes"), entry("Say yes.", "yes")
    good["conversations"][1][name], bad["conversations"][1][name] = "I should.", ["I should."]
    source = write(tmp_path, [good, bad])
    assert source[0].conversation is not None
    assert source[0].conversation.turns[1] == Turn("assistant", "yes", reasoning="I should.")
    with pytest.raises(CorruptRecord, match=r"holds the reasoning \['I should\.'\], not a text"):
        source[1]


def test_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    source = write(tmp_path, [entry("<image>?", "x", image="link.png")])
    (tmp_path / "secret.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", tmp_path / "images/link.png")
    with pytest.raises(CorruptRecord, match=r"'link.png' lies outside"):
        source[0]


def test_file_that_is_no_list_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    for text, message in (("{}", "holds no list of conversations"), ("[{]", "is not JSON: .* name it .jsonl")):
        source.file.write_text(text)
        with pytest.raises(ValueError, match=message):
            len(source)
    source = write(tmp_path, GOOD)
    with pytest.raises(FileNotFoundError, match=r"file: .*none.json does not exist; give a file of conv"):
        len(ConversationRecords(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError, match=r"images: .*nowhere does not exist; give a folder"):
        len(ConversationRecords(source.file, images=tmp_path / "nowhere"))
    (tmp_path / "others").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"images: .*others has none of .* talks.json name, such as a.png: give"
    ):
        len(ConversationRecords(source.file, images=tmp_path / "others"))
    lonely = ConversationRecords(write(tmp_path, GOOD).file)
    with pytest.raises(CorruptRecord, match=r"names image 'a.png', but no folder `images` is given"):
        lonely[0]


def test_fingerprint_follows_texts_and_pictures(tmp_path: Path) -> None:
    source = write(tmp_path, [*GOOD, {"conversations": [], "image": 3}])
    before = source.fingerprint()
    assert ConversationRecords(source.file, source.images).fingerprint() == before
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert ConversationRecords(source.file, tmp_path / "elsewhere").fingerprint() == before
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "images")
    assert ConversationRecords(source.file, source.images).fingerprint() == before
    (tmp_path / "images/sub/b.png").write_bytes(png(10))
    after = ConversationRecords(source.file, source.images).fingerprint()
    source.file.write_text(json.dumps(GOOD[:3]))
    assert len({before, after, ConversationRecords(source.file, source.images).fingerprint()}) == 3


def test_data_set_of_images_refuses_records_without_one_by_name(tmp_path: Path) -> None:
    source = write(tmp_path, [GOOD[0], GOOD[2], GOOD[1]])
    datamodule = ImageDataModule(source, image_size=4, batch_size=3, allowed={"corrupt_share": 0.5})
    datamodule.setup("fit")
    next(iter(datamodule.train_dataloader()))
    reason = "record 'talks.json entry 1' has no image, only text; a data set of images needs one"
    assert datamodule.corrupt["train"] == {1: reason}
    with pytest.raises(CorruptRecord, match="has no image"):
        source.size(1)


# --------------------------------------------------------------------------------------------------------- Hugging Face
def saved(folder: Path, **columns: Any) -> HuggingFaceConversations:
    data = datasets.Dataset.from_dict(columns)
    if "images" in columns:
        data = data.cast_column("images", datasets.List(datasets.Image()))
    data.save_to_disk(folder / "saved")
    return HuggingFaceConversations(str(folder / "saved"), images_column="images" if "images" in columns else None)


def test_messages_of_texts_and_of_parts(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (7, 9)]
    parts = [
        [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A bag."}]},
        ],
        [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        ],
        [{"role": "user", "content": [{"type": "video", "text": None}]}],
        [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
    ]
    source = saved(tmp_path, messages=parts, images=[[pictures[0]], [], [], [pictures[1]]])
    first, second = source[0], source[1]
    assert first.conversation is not None and second.conversation is not None and len(source) == 4
    assert first.conversation.turns == (Turn("user", "<image>What?"), Turn("assistant", "A bag."))
    assert first.image is not None and first.image.getpixel((0, 0)) == 7 and second.image is None
    assert source.extent(0) == (1, 18) and source.extent(1) == (0, 8) and source.size(0) == (4, 4)
    for index, reason in ((2, "a part of type 'video'; known: text, image"), (3, "there is no answer")):
        with pytest.raises(CorruptRecord, match=f"^row {index} of .*saved: .*{reason}"):
            source[index]


def test_messages_of_texts_and_evaluation_columns(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "yes"}]]
    source = saved(tmp_path, messages=messages, candidates=[["yes", "no"]], answer=[0], task=["text"])
    (record,) = [source[0]]
    assert record.conversation == Conversation(
        (Turn("user", "Say yes."), Turn("assistant", "yes")), (), ("yes", "no"), 0, "text"
    )
    with pytest.raises(ValueError, match="has no column 'talk'; it has"):
        len(HuggingFaceConversations(str(tmp_path / "saved"), messages_column="talk"))


# ---------------------------------------------------------------------------------------------------- labelled images
PICTURE = Image.new("L", (2, 2))


def test_template_asks_about_labels_and_captions_and_keeps_conversations() -> None:
    by_label = QuestionTemplate("What is this?", "a {label}")
    conversation = by_label.conversation(Record("x", PICTURE, label=1), ["bag", "coat"])
    assert conversation.turns == (Turn("user", "<image>What is this?"), Turn("assistant", "a coat"))
    assert conversation.candidates == ("a bag", "a coat") and conversation.answer == 1
    by_caption = QuestionTemplate("<image> Is {caption} right?", "{caption}")
    conversation = by_caption.conversation(Record("x", PICTURE, caption="a {red} bag"), None)
    assert conversation.turns[0].text == "<image> Is a {red} bag right?"
    assert conversation.turns[1].text == "a {red} bag" and conversation.candidates == ()
    own = Conversation((Turn("assistant", "hm"),))
    assert by_label.conversation(Record("x", None, conversation=own), None) is own


@pytest.mark.parametrize(
    ("template", "record", "classes", "reason"),
    [
        (QuestionTemplate(None, None), Record("x", PICTURE, label=1), ["a", "b"], "set chat.question and chat.answer"),
        (QuestionTemplate("What?", "{label}"), Record("x", PICTURE, caption="b"), ["a"], "asks for the label"),
        (QuestionTemplate("What?", "{label}"), Record("x", PICTURE, label=1), None, "has no name in `classes`"),
        (QuestionTemplate("What?", "{caption}"), Record("x", PICTURE), None, "asks for the caption"),
        (QuestionTemplate("What?", "{caption}"), Record("x", PICTURE, caption=" "), None, "is empty"),
        (QuestionTemplate("What?", "{caption}"), Record("x", PICTURE, caption="<image>"), None, "holds <image>"),
    ],
)
def test_record_that_does_not_fit_the_template_is_corrupt(
    template: QuestionTemplate, record: Record, classes: list[str] | None, reason: str
) -> None:
    with pytest.raises(CorruptRecord, match=reason):
        template.conversation(record, classes)


def test_template_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(ValueError, match="question is 'What\\?' and answer is None; give both or neither"):
        QuestionTemplate("What?", None)
    with pytest.raises(ValueError, match=r"answer is '{class}'; allowed fields are {label} and {caption}"):
        QuestionTemplate("What?", "{class}")
