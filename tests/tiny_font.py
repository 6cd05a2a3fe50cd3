"""A real colour font of a few emoji, made locally: what tests use in place of Debian's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import BitmapSizeTable, SbitLineMetrics, Strike, eblc_index_sub_table_1
from PIL import Image

LINE_METRICS = (
    "ascender",
    "descender",
    "widthMax",
    "caretSlopeNumerator",
    "caretSlopeDenominator",
    "caretOffset",
    "minOriginSB",
    "minAdvanceSB",
    "maxBeforeBL",
    "minAfterBL",
    "pad1",
    "pad2",
)


def save_emoji_font(
    path: Path, colours: Mapping[str, tuple[int, int, int]], *, sides: tuple[int, ...] = (16,), colourless: str = "A"
) -> Path:
    """A font with a square of a colour, in the middle of transparent pixels, for every character of ``colours``.

    Args:
        path: File to write.
        colours: By character; none at all makes a font without colour tables.
        sides: Side in pixels of the images, a set of images for each.
        colourless: A character that has an outline only.
    """
    names = [".notdef", "plain", *(f"emoji{number}" for number in range(len(colours)))]
    builder = FontBuilder(1024)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(colourless): "plain"} | dict(zip(map(ord, colours), names[2:], strict=True)))
    builder.setupPost()
    font = builder.font
    if colours:
        font["CBLC"], font["CBDT"] = newTable("CBLC"), newTable("CBDT")
        font["CBLC"].version = font["CBDT"].version = 3.0
        font["CBLC"].strikes = [_strike(font, names[2:], side) for side in sides]
        font["CBDT"].strikeData = [
            {name: _glyph(font, colour, side) for name, colour in zip(names[2:], colours.values(), strict=True)}
            for side in sides
        ]
    builder.save(path)
    return path


def _strike(font: object, names: list[str], side: int) -> Strike:
    strike, size = Strike(), BitmapSizeTable()
    for direction in ("hori", "vert"):
        line = SbitLineMetrics()
        for name in LINE_METRICS:
            setattr(line, name, 0)
        setattr(size, direction, line)
    size.colorRef, size.bitDepth, size.flags = 0, 32, 1
    size.ppemX = size.ppemY = side
    size.startGlyphIndex, size.endGlyphIndex = 2, 1 + len(names)
    table = eblc_index_sub_table_1(None, font)
    table.names, table.indexFormat, table.imageFormat, table.imageDataOffset = names, 1, 17, 4
    table.firstGlyphIndex, table.lastGlyphIndex = 2, 1 + len(names)
    strike.bitmapSizeTable, strike.indexSubTables = size, [table]
    return strike


def _glyph(font: object, colour: tuple[int, int, int], side: int) -> cbdt_bitmap_format_17:
    picture, buffer = Image.new("RGBA", (side, side)), io.BytesIO()
    picture.paste(colour, (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    picture.save(buffer, "png")
    glyph = cbdt_bitmap_format_17(None, font)
    glyph.metrics, glyph.imageData = SmallGlyphMetrics(), buffer.getvalue()
    glyph.metrics.height = glyph.metrics.width = glyph.metrics.Advance = side
    glyph.metrics.BearingX = glyph.metrics.BearingY = 0
    return glyph
