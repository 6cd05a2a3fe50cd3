"""Benchmarks of videos, of boxes, and any task with its text as pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import GroundingTask, PixelsTask, ScienceQATask, TempCompassTask
from datamodules.evaluation.benchmarks.frames import read_frames, spread
from datamodules.evaluation.benchmarks.pixels import ASKED, draw_text
from datamodules.evaluation.benchmarks.tempcompass import split_options
from datamodules.sources.records import CorruptRecord
from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.texts.boxes import overlap, read_box
from tests import tiny_benchmarks as tiny
from tests.tiny_benchmarks import write_rows
from tests.tiny_evaluation import GreyTask

OWN = Variant(0, 0, (0, 1, 2), "upper")


def frames_of(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        tiny.picture(number).save(folder / f"{number:03}.png")
    return folder


def red(image: Image.Image) -> int:
    return int(np.asarray(image.convert("RGB"))[0, 0, 0])


def test_frames_are_spread_over_the_video(tmp_path: Path) -> None:
    assert spread(10, 4) == [1, 3, 6, 8] and spread(3, 8) == [0, 1, 2] and spread(0, 2) == []
    folder = frames_of(tmp_path / "v", 10)
    assert [red(frame) for frame in read_frames(folder, 4, max_pixels=10_000)] == [1, 3, 6, 8]
    first, *others = (Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 80, 160, 240))
    first.save(tmp_path / "v.gif", save_all=True, append_images=others)
    shades = [red(frame) for frame in read_frames(tmp_path / "v.gif", 2, max_pixels=10_000)]
    assert shades == pytest.approx([80, 240], abs=3)


def test_a_video_file_is_decoded_where_that_is_possible(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="videos need the package av")
    with av.open(str(tmp_path / "v.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for shade in range(0, 250, 25):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (shade,) * 3))
            for packet in stream.encode(frame):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    found = read_frames(tmp_path / "v.mp4", 4, max_pixels=10_000)
    assert [red(frame) for frame in found] == pytest.approx([25, 75, 150, 200], abs=12)


def test_frames_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptRecord, match="holds no frames"):
        read_frames(tmp_path / "empty", 2, max_pixels=100)
    (tmp_path / "v.gif").write_bytes(b"GIF89a")
    with pytest.raises(CorruptRecord, match="cannot be decoded"):
        read_frames(tmp_path / "v.gif", 2, max_pixels=100)


TEMPCOMPASS: list[tuple[str, str, str, list[str]]] = [
    ("multi-choice", "What happens?\nA. up\nB. down\nC. left", "B. down", ["up", "down", "left"]),
    ("caption_matching", "Which fits?\nSentence A: It rises.\nSentence B: It falls.", "Sentence B: It falls.", []),
    ("yes_no", "Does it rise?", "no", ["Yes", "No"]),
]


@pytest.mark.parametrize(("kind", "question", "answer", "options"), TEMPCOMPASS)
def test_tempcompass_shows_frames(kind: Any, question: str, answer: str, options: list[str], tmp_path: Path) -> None:
    frames_of(tmp_path / "videos" / "12", 5)
    row = {"video_id": "12", "question": question, "answer": answer, "dim": "direction"}
    write_rows(tmp_path / "data" / kind / "test-00000-of-00001.parquet", [row])
    task = TempCompassTask(str(tmp_path / "data"), videos=str(tmp_path / "videos"), kind=kind, frames=3)
    task.check_paths()
    sample = task[0] if len(task) == 1 else None
    assert sample is not None and sample.answer == 1 and sample.categories == ("direction",)
    assert list(sample.options) == (options or ["It rises.", "It falls."])
    assert [red(frame) for frame in sample.images] == [0, 2, 4]
    put = Variant(0, 0, tuple(range(len(sample.options))), "upper")
    (turn,) = task.prompt(sample, put, instruction=task.sentence, method="generation", example=True).turns
    assert turn.text.startswith(f"<image><image><image>{question.partition(chr(10))[0]}\n")
    assert ("\nB. " in turn.text) == (kind != "yes_no")


def test_tempcompass_says_what_is_missing(tmp_path: Path) -> None:
    row = {"video_id": "../secret", "question": "Is it?", "answer": "yes", "dim": "order"}
    file = str(write_rows(tmp_path / "data" / "test.parquet", [row]))
    (tmp_path / "secret").mkdir()
    (tmp_path / "videos").mkdir()
    with pytest.raises(CorruptRecord, match=r"row 0 of .*: .*videos has no video '../secret'"):
        _ = TempCompassTask(file, videos=str(tmp_path / "videos"), kind="yes_no")[0]
    with pytest.raises(FileNotFoundError, match=r"tempcompass_yes_no: videos: .* give a folder of the videos"):
        TempCompassTask(file, videos=str(tmp_path / "none"), kind="yes_no").check_paths()
    with pytest.raises(ConfigurationError, match="kind is captioning; allowed: multi-choice, yes_no"):
        TempCompassTask(file, videos=".", kind="captioning")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'D\. no' is not one of the options"):
        split_options("What?\nA. up\nB. down", "D. no")


def boxed(tmp_path: Path, **more: Any) -> str:
    row = {"image": tiny.picture(1, (200, 100)), "phrase": "the red cup", "bbox": [20.0, 10.0, 60.0, 40.0]}
    return str(write_rows(tmp_path / "test.parquet", [row | {"category": "novel"} | more]))


@pytest.mark.parametrize(
    ("unit", "right"),
    [
        ("fractions", "[0.100, 0.100, 0.400, 0.500]"),
        ("thousandths", "[100, 100, 400, 500]"),
        ("pixels", "[20, 10, 80, 50]"),
    ],
)
def test_boxes_are_asked_for_in_the_models_unit(unit: Any, right: str, tmp_path: Path) -> None:
    task = GroundingTask(boxed(tmp_path), unit=unit)
    task.open()
    sample = task[0]
    assert sample.answer is not None and sample.references == (right,) == (sample.options[sample.answer],)
    assert len(sample.options) == 4 and sample.categories == ("novel",) and task.rule == "boxes"
    boxes = [read_box(text) for text in sample.options]
    wanted = read_box(right)
    assert wanted is not None
    assert sum(overlap(box, wanted) >= 0.5 for box in boxes if box is not None) == 1
    (turn,) = task.prompt(sample, OWN, instruction=task.sentence, method="generation", example=False).turns
    assert turn.text.startswith("<image>Where is this in the image: the red cup\nGive the box")
    corners = GroundingTask(boxed(tmp_path, bbox=[20.0, 10.0, 80.0, 50.0], phrase=["the red cup"]), corners=True)
    assert corners[0].references == ("[0.100, 0.100, 0.400, 0.500]",)


@pytest.mark.parametrize("bbox", [[20.0, 10.0, 0.0, 40.0], [150.0, 10.0, 60.0, 40.0], [1.0, 2.0, 3.0]])
def test_boxes_that_are_none_are_told(bbox: list[float], tmp_path: Path) -> None:
    task = GroundingTask(boxed(tmp_path, bbox=bbox))
    task.open()
    with pytest.raises(CorruptRecord, match=r"row 0 of .*: bbox"):
        _ = task[0]


def test_text_is_drawn_as_high_as_it_needs() -> None:
    one, two = draw_text("Is it?", width=200, size=20), draw_text("Is it?\nIt is.", width=200, size=20)
    assert one.size == (200, 47) and two.size == (200, 74)
    ink = np.asarray(two.convert("L")) < 128
    assert ink[:40].any() and ink[40:].any()
    assert not ink[:, :8].any() and not ink[:, -8:].any()  # the margin
    long = draw_text("x" * 60 + " and so on", width=200, size=20)
    assert not (np.asarray(long.convert("L"))[:, -8:] < 128).any() and long.height > 74
    assert (
        draw_text("\u201cIt\u2019s\u201d", width=200, size=20).tobytes()
        == draw_text('"It\'s"', width=200, size=20).tobytes()
    )
    with pytest.raises(CorruptRecord, match="the text has '\u732b', which the font lacks: set font"):
        draw_text("\u732b", width=200, size=20)


def test_any_task_can_be_put_as_pixels(tmp_path: Path) -> None:
    inner = ScienceQATask(str(write_rows(tmp_path / "scienceqa.parquet", tiny.scienceqa_rows())))
    task = PixelsTask(inner, width=300, size=16)
    assert (task.name, task.rule, len(task)) == ("scienceqa_pixels", "choice", 2)
    sample = task[0]
    own = inner.prompt(sample, OWN, instruction="Choose.", method="generation", example=False)
    prompt = task.prompt(sample, OWN, instruction="Choose.", method="generation", example=False)
    assert prompt.turns[-1].text == f"<image><image>{ASKED}" and prompt.images is not None
    assert prompt.images[0] is sample.images[0]
    text = own.turns[0].text.removeprefix("<image>")
    assert prompt.images[1].tobytes() == draw_text(text, width=300, size=16).tobytes()
    words = PixelsTask(GreyTask(pictures=False, dimension="text_only"))
    put = Variant(0, 0, (0, 1, 2, 3), "upper")
    found = words.prompt(words[0], put, instruction="Look.", method="generation", example=True)
    assert found.begun == "The answer is" and found.turns[-1].text == f"<image>{ASKED}"
    assert len(found.images or ()) == 1 and len(found.turns) == 3  # the example stays text


def test_the_look_of_the_text_makes_another_question(tmp_path: Path) -> None:
    looks = [PixelsTask(GreyTask(), size=size).look for size in (16, 20)]
    assert len({*looks, GreyTask().look}) == 3
    with pytest.raises(ConfigurationError, match="width is 100; allowed: 160 or more pixels"):
        PixelsTask(GreyTask(), width=100)
    with pytest.raises(FileNotFoundError, match="font"):
        PixelsTask(GreyTask(), font=str(tmp_path / "none.ttf")).check_paths()
