"""Captions from a list or a text file."""

from __future__ import annotations

from pathlib import Path


def read_captions(given: list[str] | str | None) -> tuple[str, ...] | None:
    """Captions of a list as they are, or of a text file with one in each line, empty lines left out.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if isinstance(given, str):
        if not Path(given).is_file():
            raise FileNotFoundError(f"captions: there is no file {given}; give a text file or a list of captions")
        given = [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    return None if given is None else tuple(given)
