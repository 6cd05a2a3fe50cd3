"""Decoding images of any source: which formats, how large, and turned as they are meant to be seen."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError, features

from datamodules.sources.records import CorruptRecord

# Formats that Pillow decodes itself: EPS, for one, would start an external interpreter.
_AVIF = ("AVIF",) if features.check("avif") else ()  # Pillow may be built without
IMAGE_FORMATS = (*_AVIF, "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(s for s, kind in Image.registered_extensions().items() if kind in IMAGE_FORMATS)
MAX_PIXELS = 89_478_485
_ORIENTATION = 0x0112  # EXIF tag; values of 5 and above turn the image on its side


def decode_image(data: Path | bytes, *, max_pixels: int) -> Image.Image:
    """Decode one image, turned the way its EXIF data says.

    Args:
        data: Path of a file, or the contents of one.
        max_pixels: Number of pixels above which an image is refused before it is decoded.

    Raises:
        CorruptRecord: If the data is no image in one of ``IMAGE_FORMATS``, damaged, missing or too large.
    """
    with _opened_image(data) as image:
        if image.width * image.height > max_pixels:
            raise CorruptRecord(f"{image.width} x {image.height} pixels are more than max_pixels={max_pixels}")
        image.load()
        return ImageOps.exif_transpose(image)


def image_size(data: Path | bytes) -> tuple[int, int]:
    """Height and width of an image, turned the way its EXIF data says, from its header alone.

    Raises:
        CorruptRecord: If the data is no image in one of ``IMAGE_FORMATS``, damaged or missing.
    """
    with _opened_image(data) as image:
        # Pillow decodes a whole PNG to look for EXIF data behind its pixels; there it is next to unknown
        turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _opened_image(data: Path | bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode_image raises instead
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=IMAGE_FORMATS)
        with image:
            yield image
    except CorruptRecord:
        raise
    except UnidentifiedImageError as error:  # its text tells where the bytes are in memory
        raise CorruptRecord("no picture of a known format, or damaged at its beginning") from error
    except Exception as error:  # a decoder may raise anything on damaged data
        raise CorruptRecord(f"{type(error).__name__}: {error}") from error


def check_max_pixels(max_pixels: int) -> int:
    """Return ``max_pixels`` if it lies between 1 and Pillow's own limit.

    Raises:
        ValueError: If it does not.
    """
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ValueError(f"max_pixels is {max_pixels}; allowed: 1 to {MAX_PIXELS} (Pillow's own limit)")
    return max_pixels
