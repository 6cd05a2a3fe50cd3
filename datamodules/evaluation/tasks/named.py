"""What tasks share that ask about images with names: classes, or captions."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from datamodules.conversations.instruction_dataset import BACKGROUND
from datamodules.evaluation.tasks.distractors import distractors
from datamodules.evaluation.tasks.reformulated import ReformulatedTask
from datamodules.evaluation.tasks.similarity import IMAGES, ImageSimilarity, check_similar, load_similarity, plain
from datamodules.images.image_dataset import flatten_image
from datamodules.sources.records import CorruptRecord, RecordSource

_LOOKED_AT = 16  # images of a name whose mean stands for it
_THUMBNAIL = (8, 8)  # pixels


class NamedTask(ReformulatedTask):
    """Questions about images with names: the class names of a labelled source, else the captions.

    Args:
        source: The images and their names.
        captions_only: Take captions even where there are classes.
        max_words: Most words of a name; records with longer ones, or with an empty caption, are left out.
        similar: Take the most similar names as wrong ones: by ``spelling``, by their ``images``, or by a safetensors
            file of embeddings (see ``datamodules.evaluation.tasks.similarity``); otherwise they are drawn.
        common: As for ``ReformulatedTask``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        captions_only: bool = False,
        max_words: int | None = None,
        similar: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(source, **common)
        self.captions_only = captions_only
        self.max_words = max_words
        self.similar = similar
        self._names: list[str | None] = []
        self._unreadable: set[int] = set()
        self._members: dict[str, list[int]] = {}  # positions of the images of each name
        if max_words is not None and max_words < 1:
            raise ValueError(f"max_words of task {self.name!r} is {max_words}; allowed: 1 or more, or null")

    def check_paths(self) -> None:
        """See that the files of the source and of `similar` are there."""
        super().check_paths()
        if self.similar != IMAGES:
            check_similar(self.similar)

    def _read(self) -> None:
        classes = None if self.captions_only else self.source.classes
        texts = [self._text(position, classes) for position in range(len(self.source))]
        if all(text is None for text in texts):
            wanted = "captions" if self.captions_only else "labels with class names, or captions"
            raise ValueError(f"task {self.name!r} needs {wanted}, which {type(self.source).__name__} does not have")
        self._names = [text if text is not None and self._short(text) else None for text in texts]
        known: dict[str, str] = {}
        for position, name in enumerate(self._names):
            if name is not None:
                self._members.setdefault(known.setdefault(plain(name), name), []).append(position)
        by_images = self.similar == IMAGES
        self._similarity = (
            ImageSimilarity(self._members, self._thumbnails) if by_images else load_similarity(self.similar)
        )
        if self._similarity is not None:
            self._similarity.check(self._members)

    def _usable(self, position: int) -> bool:
        return position in self._unreadable or self._names[position] is not None

    def _text(self, position: int, classes: list[str] | None) -> str | None:
        try:
            label = None if classes is None else self.source.label_of(position)
            return self.source.caption_of(position) if classes is None or label is None else classes[label]
        except CorruptRecord:
            self._unreadable.add(position)
            return None

    def _short(self, text: str) -> bool:
        return bool(text.strip()) and (self.max_words is None or len(text.split()) <= self.max_words)

    def _need_names(self, count: int) -> None:
        if len(self._members) < count:
            raise ValueError(
                f"task {self.name!r} needs {count} different names, the source has {len(self._members)}: "
                "ask for fewer options, or let more names in"
            )

    def _name_of(self, position: int) -> str:
        name = self._names[position]
        if name is None:
            raise CorruptRecord("its label or caption cannot be read")
        return name

    def _other_names(self, name: str, count: int, rng: np.random.Generator) -> list[str]:
        """Names that an image of this name does not bear: a ``cat face`` shows a ``cat``, too."""
        return distractors(name, self._not_borne(name), count, rng=rng, similar=self._similarity)

    def _not_borne(self, name: str) -> list[str]:
        words = set(plain(name).split())
        return [
            other
            for other in self._members
            if not (set(plain(other).split()) <= words or words <= set(plain(other).split()))
        ]

    def _thumbnails(self, name: str) -> np.ndarray:
        """Small images of a few records of a name, spread over the source: (N, C), from 0 to 1."""
        members = self._members[name]
        found: list[np.ndarray] = []
        for position in members[:: max(1, len(members) // _LOOKED_AT)][:_LOOKED_AT]:
            with suppress(CorruptRecord):  # reported when it is asked about
                image = flatten_image(self.source[position].needed_image, channels=3, background=BACKGROUND)
                small = image.resize(_THUMBNAIL, Image.Resampling.BOX)
                found.append(np.asarray(small, dtype=np.float32).ravel() / 255)
        return np.array(found)

    def _position_of(self, name: str, rng: np.random.Generator) -> int:
        """A drawn record of that name."""
        members = self._members[name]
        return members[int(rng.integers(len(members)))]
