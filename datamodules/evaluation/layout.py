"""From an entry of a published file to what a sample holds, by a layout that is data."""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from PIL import Image, ImageDraw

from datamodules.conversations.llava import read_turn
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.evaluation.reform_eval.taxonomy import Layout
from sparsight.lvlm.chat.conversation import Turn

BOX_COLOURS = ((255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 215, 0))  # questions speak of the red box
WRONG_OPTIONS = 3  # drawn from a pool, where options are not stored
YES_NO = ("yes", "no")
_SAME_IMAGE = {"image": "img", "img": "image"}  # records of one data set, such as CLEVR, may have either


def find_field(entry: Any, path: str) -> Any:
    """What an entry holds at a path such as ``answers.0.answer``.

    Raises:
        ValueError: Nothing.
    """
    value = entry
    for step in path.split("."):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"field `{path}` is missing; there are {', '.join(entry) or 'none'}") from None
    return value


def optional_field(entry: Mapping[str, Any], path: str | None) -> Any:
    """As ``find_field``, but ``None`` where the layout has no such field or the entry leaves it out."""
    return None if path is None or path.split(".")[0] not in entry else find_field(entry, path)


def read_id(entry: Mapping[str, Any], layout: Layout, position: int) -> str:
    """Id of an entry, its position where it has none.

    Raises:
        ValueError: It is neither text nor number.
    """
    return _name(position if layout.id is None else find_field(entry, layout.id), layout.id)


def read_dialogue(entry: Mapping[str, Any], layout: Layout) -> str | None:
    """Id of the dialogue that an entry is a question of, if it is.

    Raises:
        ValueError: It is neither text nor number.
    """
    found = optional_field(entry, layout.dialogue)
    return None if found is None else _name(found, layout.dialogue)


def _name(found: Any, field: str | None) -> str:
    if isinstance(found, bool) or not isinstance(found, (str, int)) or not str(found).strip():
        raise ValueError(f"`{field}` is {found!r}, neither text nor a whole number")
    return str(found)


def read_sample(
    entry: Mapping[str, Any], layout: Layout, *, id: str, formulation: Formulation, pool: Sequence[str], seed: int
) -> Sample:
    """The sample of an entry, without its images.

    Args:
        entry: The entry.
        layout: Where it keeps what.
        id: Its id.
        formulation: Options and their answer are read for SingleChoice alone, unless the entry has both kinds.
        pool: Answers to draw wrong options from, where the layout says so.
        seed: Of that draw; it is the same for an id whatever else is drawn.

    Raises:
        ValueError: A field is missing or of another kind.
    """
    options: tuple[str, ...] = ()
    answer = None
    choice = formulation == "SingleChoice"
    if layout.pool is not None:
        right = str(find_field(entry, layout.answer or ""))
        options = _drawn_options(right, pool, Random(f"{seed} {id}"))
        answer = options.index(right)
    elif layout.fixed_options or choice or optional_field(entry, layout.options) is not None:
        options = layout.fixed_options or _texts(find_field(entry, layout.options or ""), layout.options)
        right = find_field(entry, layout.answer or "")
        if layout.option_end:
            options = tuple(_ended(option, layout.option_end) for option in options)
            right = _ended(right, layout.option_end) if isinstance(right, str) else right
        answer = _position(right, options, layout.answer)
    references = optional_field(entry, layout.references)
    turn = optional_field(entry, layout.turn)
    if turn is not None and (isinstance(turn, bool) or not isinstance(turn, int)):
        raise ValueError(f"`{layout.turn}` is {turn!r}, not a whole number")
    return Sample(
        id=id,
        questions=_questions(entry, layout),
        options=options,
        answer=answer,
        references=() if references is None else _texts(references, layout.references),
        history=_history(optional_field(entry, layout.history), layout.history),
        turn=turn,
        dialogue=read_dialogue(entry, layout),
    )


def read_images(entry: Mapping[str, Any], layout: Layout) -> list[bytes]:
    """The images of an entry as they are encoded.

    Raises:
        ValueError: There are none, or they are no base64.
    """
    name = _SAME_IMAGE.get(layout.image, layout.image)
    found = find_field(entry, name if name in entry and layout.image not in entry else layout.image)
    images = []
    for number, text in enumerate(found if isinstance(found, list) else [found]):
        where = f"`{layout.image}`" + (f" {number}" if isinstance(found, list) else "")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where} is {text!r}, not a picture in base64")
        try:
            images.append(base64.b64decode(text))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{where} is not base64: {error}") from error
    return images


def read_boxes(entry: Mapping[str, Any], layout: Layout, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes of an entry as left, top, right and bottom, cut to the image.

    Args:
        entry: The entry.
        layout: Where it keeps what.
        size: Height and width of the image.

    Raises:
        ValueError: They are no boxes, or lie outside the image.
    """
    if layout.boxes is None:
        return []
    found = find_field(entry, layout.boxes)
    boxes = []
    for box in found if isinstance(found, list) and found and isinstance(found[0], list) else [found]:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"`{layout.boxes}` holds {box!r}, not four numbers")
        left, top, right, bottom = box if layout.corners else (*box[:2], box[0] + box[2], box[1] + box[3])
        cut = (max(int(left), 0), max(int(top), 0), min(int(right), size[1]), min(int(bottom), size[0]))
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise ValueError(f"box {box} is empty or outside the picture of {size[1]} x {size[0]} pixels")
        boxes.append(cut)
    if len(boxes) > (1 if layout.crop else len(BOX_COLOURS)):
        raise ValueError(
            f"`{layout.boxes}` holds {len(boxes)} boxes, too many to {'cut out' if layout.crop else 'draw'}"
        )
    return boxes


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def apply_boxes(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]], layout: Layout) -> Image.Image:
    """The image with its boxes drawn, or the one box cut out."""
    if not boxes:
        return image
    if layout.crop:
        return image.crop(boxes[0])
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for (left, top, right, bottom), colour in zip(boxes, BOX_COLOURS, strict=False):
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=layout.line)
    return drawn


def find_rounds(entry: Mapping[str, Any], layout: Layout) -> list[Any]:
    """Rounds of a dialogue.

    Raises:
        ValueError: There are none.
    """
    rounds = find_field(entry, layout.rounds or "")
    if not isinstance(rounds, list) or not rounds:
        raise ValueError(f"`{layout.rounds}` is no list of rounds, or empty")
    return rounds


def read_round(entry: Mapping[str, Any], header: Mapping[str, Any], layout: Layout, number: int) -> dict[str, Any]:
    """One round of a dialogue as an entry of its own, the rounds before it as its history.

    Raises:
        ValueError: A number does not name a text.
    """
    rounds = find_rounds(entry, layout)[: number + 1]
    asked = [_listed(header, "questions", find_field(said, "question")) for said in rounds]
    asked = [text if text.endswith("?") else f"{text}?" for text in asked]  # VisDial leaves it out
    answers = [_listed(header, "answers", find_field(said, "answer")) for said in rounds]
    options = find_field(rounds[-1], "answer_options")
    if not isinstance(options, list):
        raise ValueError(f"`answer_options` is {options!r}, not a list of numbers")
    turns = [
        {"from": role, "value": text}
        for said in zip(asked[:-1], answers[:-1], strict=True)
        for role, text in zip(("human", "gpt"), said, strict=True)
    ]
    return {
        **entry,
        "question": asked[-1],
        "answer_options": [_listed(header, "answers", option) for option in options],
        "answer": answers[-1],
        "history": turns,
        "turn": number,
    }


def _listed(header: Mapping[str, Any], name: str, number: Any) -> str:
    texts = header.get(name)
    if not isinstance(texts, list) or type(number) is not int or not 0 <= number < len(texts):
        raise ValueError(f"{number!r} is not the number of one of the file's `{name}`")
    return str(texts[number])


def _questions(entry: Mapping[str, Any], layout: Layout) -> tuple[str, ...]:
    if not layout.wordings:
        return _texts(find_field(entry, layout.question or ""), layout.question)
    try:
        return tuple(wording.format_map(entry) for wording in layout.wordings)
    except KeyError as error:
        raise ValueError(f"field `{error.args[0]}` is missing; there are {', '.join(entry)}") from error


def _texts(value: Any, name: str | None) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` is {value!r}, neither a text nor a list of texts")
    return tuple(texts)


def _ended(text: str, end: str) -> str:
    return text if text.endswith(end) or not text.strip() else text + end


def _position(answer: Any, options: Sequence[str], name: str | None) -> int:
    if isinstance(answer, str) and answer in options:
        return options.index(answer)
    if type(answer) is not int or not 0 <= answer < len(options):
        raise ValueError(f"`{name}` is {answer!r}, neither the text nor the position of one of {list(options)}")
    return answer


def _history(turns: Any, name: str | None) -> tuple[Turn, ...]:
    if turns is None:
        return ()
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{name}` is no list of turns")
    return tuple(read_turn(turn.get("from"), turn.get("value")) for turn in turns)


def _drawn_options(right: str, pool: Sequence[str], random: Random) -> tuple[str, ...]:
    if right in YES_NO:
        return YES_NO
    wrong = [text for text in dict.fromkeys(pool) if text != right]
    if len(wrong) < WRONG_OPTIONS:
        raise ValueError(f"the pool has {len(wrong)} answers beside {right!r}; {WRONG_OPTIONS} are needed")
    drawn = random.sample(wrong, WRONG_OPTIONS)
    drawn.insert(random.randint(0, WRONG_OPTIONS), right)
    return tuple(drawn)
