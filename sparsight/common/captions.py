"""Captions from a list or a text file."""

from __future__ import annotations

from pathlib import Path

from sparsight.common.text import BadText, clean_text, read_lines


def read_captions(given: list[str] | str | None) -> tuple[str, ...] | None:
    """Captions of a list, or of a text file with one in each line, empty lines left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A caption is no text, or not UTF-8; the message names file and line.
    """
    if given is None:
        return None
    if not isinstance(given, str):
        return tuple(clean_text(caption, what=f"caption {place}") for place, caption in enumerate(given))
    path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"captions: there is no file {given}; give a text file or a list of captions")
    try:
        return tuple(clean_text(line, what=f"line {number}") for number, line in read_lines(path))
    except BadText as error:
        raise ValueError(f"captions: {error}" if given in str(error) else f"captions: {given}, {error}") from error
