"""Colour emoji of a font as captioned images."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fontTools.ttLib import TTFont

from datamodules.sources.decoding import MAX_PIXELS, decode_image, image_size
from datamodules.sources.records import Record, RecordSource, digest

DEBIAN_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


class EmojiRecords(RecordSource):
    """The images that a colour bitmap font has for single code points, in the order of their code points.

    Images are taken from the font as they are (Noto's have 136 x 128 pixels, transparent around the emoji), and
    captions are the Unicode names in small letters, e.g. ``face with tears of joy``. Code points that this Python's
    Unicode tables do not name, and sequences such as flags and skin tones, are left out.

    Args:
        font: A TrueType font with colour bitmaps (table CBDT), such as Noto Color Emoji, which the Debian package
            fonts-noto-color-emoji installs at the default path.
    """

    def __init__(self, font: str | Path = DEBIAN_FONT) -> None:
        self.font = Path(font)
        self._codes: list[int] = []
        self._images: list[bytes] = []

    @property
    def classes(self) -> None:
        """There are none."""
        return None

    def __len__(self) -> int:
        """Number of emoji."""
        self.open()
        return len(self._codes)

    def __getitem__(self, index: int) -> Record:
        """The image and name of one emoji; its id is the code point, e.g. ``1f602``."""
        self.open()
        image = decode_image(self._images[index], max_pixels=MAX_PIXELS)
        return Record(id=f"{self._codes[index]:x}", image=image, caption=self.caption_of(index))

    def caption_of(self, index: int) -> str:
        """Name of one emoji."""
        self.open()
        return unicodedata.name(chr(self._codes[index])).lower()

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from its header."""
        self.open()
        return image_size(self._images[index])

    def fingerprint(self) -> str:
        """Covers every code point, name and image."""
        self.open()
        names = [unicodedata.name(chr(code)) for code in self._codes]
        return digest(zip(self._codes, names, self._images, strict=True))

    def content(self) -> Iterator[str]:
        """Every code point, name and image."""
        yield self.fingerprint()

    def check_paths(self) -> None:
        """See that the font is there."""
        if not self.font.is_file():
            raise FileNotFoundError(
                f"emoji font {self.font} does not exist: run `apt-get install fonts-noto-color-emoji` (Debian, Ubuntu) "
                "or set `font` to a font with colour bitmaps"
            )

    def _open(self) -> None:
        self.check_paths()
        try:
            with TTFont(self.font, lazy=True) as font:
                images = _images(font)
        except Exception as error:  # a parser may raise anything on a damaged font
            raise ValueError(f"{self.font} is no TrueType font that can be read: {error}") from error
        if not images:
            raise ValueError(
                f"font {self.font} has no colour bitmaps (table CBDT) of named code points: take Noto Color Emoji, "
                "which the Debian package fonts-noto-color-emoji installs"
            )
        self._codes, self._images = list(images), list(images.values())


def _images(font: Any) -> dict[int, bytes]:
    """PNG files by code point, of the font's largest images; none if it has no such table."""
    if "CBDT" not in font:
        return {}
    sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
    glyphs = font["CBDT"].strikeData[sizes.index(max(sizes))]
    names = sorted(font.getBestCmap().items())
    return {
        code: bytes(glyphs[glyph].imageData)
        for code, glyph in names
        if glyph in glyphs and unicodedata.name(chr(code), None) is not None
    }
