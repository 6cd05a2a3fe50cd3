"""Questions of the region study: eight tasks, for training and for three sets of items that share no image.

Everything is plain data, as the command's options take it. Chance is one by the number of candidates of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Split = Literal["train", "tasks", "rates", "arms"]
"""What questions are for: training; choosing which tasks count; choosing learning rates; scoring the arms."""
ITEMS: dict[Split, int] = {"train": 830, "tasks": 200, "rates": 100, "arms": 250}  # of each task, at most
CHANCE = {
    "naming": 1 / 10,
    "choice": 1 / 4,
    "yes_no": 1 / 2,
    "counting": 1 / 4,
    "position": 1 / 4,
    "which": 1 / 4,
    "digits": 1 / 10,
    "words": 1 / 4,
}
CLASSES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
WORDS = (
    *("cat", "cap", "can", "car", "hat", "ham", "hot", "hop", "sun", "son", "run", "rug"),
    *("bed", "bad", "bag", "bat", "dog", "dig", "log", "leg", "pen", "pin", "net", "nut"),
)
DIGITS = tuple("0123456789")
FILES = "/usr/share/datasets/fashion-mnist/"
CLOTHES: dict[Split, tuple[int, int | None]] = {  # of the test images: left out first, and taken
    "tasks": (0, 2000),
    "rates": (2000, 2000),
    "arms": (4000, None),
}
EMOJI: dict[Split, tuple[int, int | None]] = {  # of all
    "tasks": (0, 280),
    "rates": (280, 160),
    "arms": (440, 360),
    "train": (800, None),
}
NUMBER: dict[Split, int] = {"train": 0, "tasks": 1, "rates": 2, "arms": 3}  # seeds of what is drawn


def named(kind: str, /, **options: Any) -> dict[str, Any]:
    """A class of ``datamodules`` with its options."""
    return {"class_path": f"datamodules.{kind}", "init_args": options}


def mixed(sources: list[dict[str, Any]], *, limits: list[int | None], skips: list[int] | None = None) -> dict[str, Any]:
    """Several sources; every option is named, as those of the config's own would stay."""
    return named("MixedRecords", sources=sources, limits=limits, skips=skips or [0] * len(sources), seed=7)


def clothes(split: Split) -> dict[str, Any]:
    """Images of clothes with their classes: training's own, or a part of the test images."""
    part = "train" if split == "train" else "t10k"
    found = named(
        "IdxRecords",
        images=f"{FILES}{part}-images-idx3-ubyte.gz",
        labels=f"{FILES}{part}-labels-idx1-ubyte.gz",
        classes=CLASSES,
    )
    if split == "train":
        return found
    skip, limit = CLOTHES[split]
    return mixed([found], limits=[limit], skips=[skip])


def emoji(split: Split) -> dict[str, Any]:
    """A part of the emoji."""
    skip, limit = EMOJI[split]
    return mixed([named("EmojiRecords")], limits=[limit], skips=[skip])


def texts(words: Sequence[str], split: Split) -> dict[str, Any]:
    """Images of words, drawn with the split's own seed."""
    return named(
        "RenderedTextRecords", words=list(words), copies=-(-ITEMS[split] // len(words)), seed=100 + NUMBER[split]
    )


def tasks_of(split: Split) -> dict[str, dict[str, Any]]:
    """The source of every task's questions, by its name."""
    common = {"limit": ITEMS[split], "seed": NUMBER[split]}
    of: dict[str, tuple[str, dict[str, Any]]] = {
        "yes_no": ("MatchingTask", {"source": clothes(split), "partners": True, "similar": "images"}),
        "counting": (
            "CountingTask",
            {"source": emoji(split), "low": 1, "high": 4, "others": 0, "canvas_size": 224, "side": 48, "max_words": 3},
        ),
        "position": ("PositionTask", {"source": emoji(split), "others": 0, "canvas_size": 224, "max_words": 3}),
        "which": ("PositionTask", {"source": clothes(split), "kind": "what", "canvas_size": 224}),
        "digits": ("ReadingTask", {"source": texts(DIGITS, split), "similar": None, "options": len(DIGITS)}),
        "words": ("ReadingTask", {"source": texts(WORDS, split)}),
    }
    found = {}
    for name, (kind, options) in of.items():
        choice = {"formulation": "SingleChoice"} if kind == "ReadingTask" else {}
        task = named(kind, name=name, dimension="fine_perception", **options, **choice, **common)
        found[name] = named("TaskQuestions", task=task, vary=split == "train", seed=NUMBER[split])
    for name in ("naming", "choice"):
        found[name] = named(
            "LabelledQuestions", source=clothes(split), tasks=[name], vary=split == "train", seed=NUMBER[split]
        )
    return {name: found[name] for name in CHANCE}


def questions(split: Split, *, tasks: list[str] | None = None, text: bool = False, limit: int | None = None) -> Any:
    """Questions of a split.

    Args:
        split: What they are for.
        tasks: Which are asked; all if not given.
        text: Ask what has no image, too: what was forgotten?
        limit: Fewer of each task.
    """
    sources = tasks_of(split)
    chosen = [sources[name] for name in tasks or sources]
    limits: list[int | None] = [limit or ITEMS[split]] * len(chosen)
    return mixed([*chosen, named("TextQuestions")], limits=[*limits, None]) if text else mixed(chosen, limits=limits)


def captions() -> Any:
    """What the projector is aligned on: the names of training's clothes and emoji, and nothing else is asked."""
    common = {"name": "emoji", "dimension": "coarse_perception", "max_words": 3}
    task = named("NamingTask", source=emoji("train"), **common)
    of_clothes = named("LabelledQuestions", source=clothes("train"), tasks=["naming"], vary=True, seed=0)
    return mixed([of_clothes, named("TaskQuestions", task=task, vary=True, seed=0)], limits=[4000, None])
