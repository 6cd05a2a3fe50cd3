"""Questions about what is shown: the image really shows the right answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import (
    EmojiRecords,
    Record,
)
from datamodules.evaluation.tasks.canvas import GAP, capacity, composed, scattered
from datamodules.evaluation.tasks.colour import NEAR, ColourTask
from datamodules.evaluation.tasks.counting import CountingTask
from datamodules.evaluation.tasks.matching import MatchingTask
from datamodules.evaluation.tasks.naming import NamingTask
from datamodules.evaluation.tasks.position import PositionTask
from tests.tiny_font import save_emoji_font
from tests.tiny_records import (
    BASIC,
    COLOURS,
    NAMES,
    Pictures,
    Squares,
    captioned,
    is_uniform,
    plainly,
    right,
    samples,
    two_coloured,
)


def test_naming_asks_for_the_class_or_the_caption() -> None:
    for named_by in ("label", "caption"):
        for sample in samples(NamingTask(Squares(named_by=named_by), **BASIC)):
            assert sample.images[0].getpixel((3, 3)) == COLOURS[right(sample).split()[0]]
            assert set(sample.options) <= set(NAMES)


def test_names_that_the_picture_also_bears_are_not_offered() -> None:
    source = captioned("cat face", "cat", "Cat", "cat face with joy", "dog face", "cow", "red fox", "face")
    for sample in samples(NamingTask(source, options=3, **BASIC)):
        mine = set(right(sample).lower().split())
        others = [set(option.lower().split()) for option in sample.options if option != right(sample)]
        assert not any(mine <= other or other <= mine for other in others)
    assert {right(sample) for sample in samples(NamingTask(source, max_words=1, options=2, **BASIC))} == {
        "cat",
        "Cat",
        "cow",
        "face",
    }


def test_half_of_the_texts_match() -> None:
    found = samples(MatchingTask(Squares(), **BASIC))
    assert Counter(map(right, found)) == {"yes": 30, "no": 30}
    for sample in found:
        text = next(name for name in NAMES if f'"{name}"' in sample.questions[0])
        shown = sample.images[0].getpixel((3, 3)) == COLOURS[text.split()[0]]
        assert right(sample) == ("yes" if shown else "no")


def pixels_of(image: Image.Image, name: str) -> int:
    near_HW3 = np.abs(np.asarray(image, dtype=int) - COLOURS[name.split()[0]]) < 4
    return int(near_HW3.all(axis=2).sum())


def test_as_many_copies_are_on_the_canvas_as_the_answer_says() -> None:
    found = samples(CountingTask(Squares(240), low=2, high=9, others=2, canvas_size=120, side=20, **BASIC))
    for sample in found:
        name = next(name for name in NAMES if f'"{name}"' in sample.questions[0])
        copies = int(right(sample))
        assert pixels_of(sample.images[0], name) == copies * 20 * 20, "whole pictures: none covers another"
        others = [pixels_of(sample.images[0], other) // 400 for other in NAMES if other != name]
        assert set(others) <= {0, 1} and 1 <= sum(others) <= 2
        assert set(map(int, sample.options)) <= set(range(2, 10))
        assert np.all(np.diff(sorted(map(int, sample.options))) == 1), "a row of neighbours"


def test_the_numbers_to_choose_from_do_not_give_the_count_away() -> None:
    """Neither the least nor the greatest is the better guess, at the ends of the range too."""
    found = samples(CountingTask(Squares(600), low=1, high=5, others=1, canvas_size=40, side=4, **BASIC))
    for row in ("1234", "2345"):
        ranks = Counter(row.index(right(sample)) for sample in found if "".join(sorted(sample.options)) == row)
        assert sum(ranks.values()) > 200
        assert is_uniform(ranks, 4)


def test_places_on_a_canvas_are_apart() -> None:
    for seed in range(30):
        size, side = 99 + seed % 19, 15
        places = scattered(capacity(size, side=side), size=size, side=side, rng=np.random.default_rng(seed))
        taken_HW = np.zeros((size, size), dtype=int)
        for left, top in places:
            assert min(left, top) >= GAP and max(left, top) + side + GAP <= size
            taken_HW[top : top + side + GAP, left : left + side + GAP] += 1  # with the gap that follows it
        assert len(places) == 25 and taken_HW.max() == 1


def test_pictures_keep_their_proportions_in_the_middle_of_their_square() -> None:
    canvas = composed([(Image.new("L", (4, 2), 0), (10, 20))], size=60, side=12)
    rows, columns = np.nonzero(np.asarray(canvas.convert("L")) < 255)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 21, 23, 28)


CENTRES = {
    "top left": (10, 10),
    "top right": (30, 10),
    "bottom left": (10, 30),
    "bottom right": (30, 30),
    "left": (10, 20),
    "right": (30, 20),
    "top": (20, 10),
    "bottom": (20, 30),
}


@pytest.mark.parametrize("layout", ["corners", "halves"])
@pytest.mark.parametrize("kind", ["where", "what"])
def test_the_picture_is_where_the_answer_says(kind: Any, layout: Any) -> None:
    asked_places = set()
    for sample in samples(PositionTask(Squares(), kind=kind, layout=layout, canvas_size=40, **BASIC)):
        question = sample.questions[0]
        if kind == "where":
            place, name = right(sample), next(name for name in NAMES if f'"{name}"' in question)
            names = NAMES
        else:
            place, name = next(p for p in CENTRES if question == f"What is at the {p}?"), right(sample)
            names = list(sample.options)
        assert sample.images[0].getpixel(CENTRES[place]) == COLOURS[name.split()[0]]
        shown = [other for other in names if pixels_of(sample.images[0], other)]
        assert len(shown) == len(sample.options) == (4 if layout == "corners" else 2), "every option is on the canvas"
        asked_places.add(place)
    assert asked_places == set(list(CENTRES)[:4] if layout == "corners" else list(CENTRES)[4:])


def test_transparent_pictures_are_put_on_white(tmp_path: Path) -> None:
    fruit = {chr(0x1F345 + n): colour for n, colour in enumerate(COLOURS.values())}
    records = EmojiRecords(save_emoji_font(tmp_path / "font.ttf", fruit))
    sample = PositionTask(records, canvas_size=40, **BASIC)[0]
    assert sample.images[0].mode == "RGB"
    assert sample.images[0].getpixel((GAP, GAP)) == sample.images[0].getpixel((20, 20)) == (255, 255, 255)
    assert sample.images[0].getpixel((GAP + 8, GAP + 8)) in COLOURS.values()


@pytest.mark.parametrize(
    ("pixel", "name"),
    [
        ((255, 0, 0), "red"),
        ((244, 67, 54), "red"),
        ((255, 152, 0), "orange"),
        ((109, 76, 65), "brown"),
        ((101, 67, 33), "brown"),
        ((253, 216, 53), "yellow"),
        ((255, 255, 0), "yellow"),
        ((0, 128, 0), "green"),
        ((124, 179, 66), "green"),
        ((0, 0, 255), "blue"),
        ((135, 206, 235), "blue"),
        ((128, 0, 128), None),  # between purple and pink
        ((142, 36, 170), "purple"),
        ((255, 105, 180), "pink"),
        ((0, 0, 0), "black"),
        ((128, 128, 128), "grey"),
        ((66, 66, 66), None),  # some say black, others grey
        ((255, 255, 255), "white"),
        ((0, 190, 190), None),  # turquoise
    ],
)
def test_colours_have_the_names_that_people_give_them(pixel: tuple[int, int, int], name: str | None) -> None:
    task = ColourTask(Pictures([Record("one", Image.new("RGB", (4, 4), pixel))]), **BASIC)
    if name is None:
        with pytest.raises(ValueError, match="none of 1 records"):
            task.open()
        return
    assert right(task[0]) == name and not NEAR[name] & set(task[0].options)


def test_only_a_colour_that_clearly_dominates_is_asked_for() -> None:
    image = Image.new("RGBA", (10, 10), (255, 255, 255, 0))
    image.paste((*COLOURS["green"], 255), (0, 0, 7, 1))
    image.paste((*COLOURS["blue"], 255), (7, 0, 10, 1))
    source = Pictures([Record("few pixels", image), *two_coloured().records])
    for seed in range(30):
        found = samples(ColourTask(source, seed=seed, **BASIC))
        assert [sample.id for sample in found] == ["few pixels"], "transparent pixels have no say"
        assert right(found[0]) == "green" and not {"blue", "white"} & set(found[0].options)
    with pytest.raises(ValueError, match="none of 2 records"):
        ColourTask(source, dominance=0.8, **BASIC).open()


def test_what_is_asked_about_a_record_does_not_depend_on_which_others_are_left_out() -> None:
    squares = [Record(name, Image.new("RGB", (4, 4), COLOURS[name])) for name in ("red", "green", "blue", "yellow") * 5]
    squares = [Record(f"{n} {record.id}", record.image) for n, record in enumerate(squares)]
    some = [Record(record.id, two_coloured()[0].image) if n % 3 == 0 else record for n, record in enumerate(squares)]
    whole = {sample.id: plainly(sample) for sample in samples(ColourTask(Pictures(squares), **BASIC))}
    fewer = {sample.id: plainly(sample) for sample in samples(ColourTask(Pictures(some), **BASIC))}
    assert len(whole) == 20 and len(fewer) == 13 and fewer.items() <= whole.items()
