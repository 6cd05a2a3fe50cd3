"""Pictures of words."""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.evaluation.tasks.words import WORDS
from datamodules.sampler import derive_seed
from datamodules.sources.records import Record, RecordSource

_PRINTABLE = set(string.ascii_letters + string.digits + string.punctuation + " ")  # what the font surely has
_TRIAL = 100  # size of the font at which a text is measured
_LEAST = 14  # least size of the font in pixels that people read at ease


class RenderedTextRecords(RecordSource):
    """A word on a plain image, in Pillow's built-in scalable font; the caption is the word.

    Size, place and colours depend on the seed and the record's position; one of the colours is dark, the other light.

    Args:
        words: Texts of one line, in printable ASCII; nearly 400 common English words if not given.
        side: Height and width of the images in pixels.
        seed: Decides size, place and colours.
        copies: Images of every word, each with other sizes, places and colours.

    Raises:
        ValueError: A word is empty or has other characters, or there is none; or ``copies`` is below 1.
    """

    def __init__(self, words: list[str] | None = None, side: int = 224, seed: int = 0, copies: int = 1) -> None:
        self.words = WORDS.split() if words is None else words
        self.side = side
        self.seed = seed
        self.copies = copies
        if copies < 1:
            raise ValueError(f"copies is {copies}; allowed: 1 or more")
        if side < 32:
            raise ValueError(f"side is {side}; allowed: 32 or more pixels")
        if not self.words:
            raise ValueError("words is empty; give one or more, or leave the option out")
        odd = [word for word in self.words if not word.strip() or not set(word) <= _PRINTABLE]
        if odd:
            raise ValueError(f"words holds {odd[0]!r}; allowed are texts of one line in printable ASCII, not empty")

    def _open(self) -> None:
        for word in self.words:
            if self._largest(word) < _LEAST:
                raise ValueError(
                    f"{word!r} is too long for a picture of {self.side} pixels: shorten it or set a larger side"
                )

    @property
    def classes(self) -> None:
        """There are none."""
        return None

    def __len__(self) -> int:
        """Number of words, times that of copies."""
        return len(self.words) * self.copies

    def __getitem__(self, index: int) -> Record:
        """Picture (RGB) and word."""
        self.open()
        word = self.caption_of(index)
        rng = np.random.default_rng(derive_seed(self.seed, index))
        dark, light = (tuple(rng.integers(*span, size=3).tolist()) for span in ((0, 81), (190, 256)))
        ground, ink = (light, dark) if rng.integers(2) else (dark, light)
        largest = self._largest(word)
        font = ImageFont.load_default(size=float(rng.uniform(max(_LEAST, largest / 2), largest)))
        left, top, right, bottom = font.getbbox(word)
        margin = self._margin
        x, y = (
            rng.uniform(margin, max(margin, self.side - margin - extent)) for extent in (right - left, bottom - top)
        )
        image = Image.new("RGB", (self.side, self.side), ground)
        ImageDraw.Draw(image).text((float(x - left), float(y - top)), word, fill=ink, font=font)
        return Record(id=f"{index} {word}", image=image, caption=word)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        return self.side, self.side

    def caption_of(self, index: int) -> str:
        """A word; all of them come once before any comes again."""
        return self.words[index % len(self.words)]

    def content(self) -> Iterator[object]:
        """The options."""
        return iter([self.words, self.side, self.seed, *([] if self.copies == 1 else [self.copies])])

    @property
    def _margin(self) -> int:
        return self.side // 32

    def _largest(self, word: str) -> float:
        """Size of the font at which the word fills the image's width, or a third of its height."""
        left, top, right, bottom = ImageFont.load_default(size=_TRIAL).getbbox(word)
        room = self.side - 2 * self._margin - 2  # rounding of outlines
        return _TRIAL * min(room / (right - left), room / 3 / max(1, bottom - top))
