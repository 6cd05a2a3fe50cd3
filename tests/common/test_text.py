"""The one reader of text: what is dropped, what is refused, and by which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsight.common.captions import read_captions
from sparsight.common.text import BadText, clean_text, parse_json, read_caption, read_lines, read_text
from sparsight.lvlm.chat.conversation import Conversation, Turn

UNUSABLE = {"a \ud83d": "half a character", "a\0b": "control character", "\x1b[2Jx": "control", "\x9dx": "control"}


@pytest.mark.parametrize("text", UNUSABLE)
def test_halves_of_characters_and_control_characters_are_bad_text(text: str) -> None:
    with pytest.raises(BadText, match=rf"^caption: .*{UNUSABLE[text]}"):
        clean_text(text, what="caption")
    with pytest.raises(ValueError, match=UNUSABLE[text]):
        Conversation((Turn("user", text), Turn("assistant", "yes")))


@pytest.mark.parametrize("value", [None, 5, 1.5, True, ["a cat"], {"en": "a cat"}, b"a cat"])
def test_what_is_no_text_does_not_become_one(value: object) -> None:
    with pytest.raises(BadText, match=r"`text` holds .*, not a text"):
        clean_text(value, what="`text`")


def test_text_is_kept_whole_but_for_what_stands_around_it() -> None:
    kept = "caf\u00e9,\ttwo\u2028lines \U0001f600 \u200d \x85\nend"
    assert clean_text(f"\ufeff {kept}\r\n", what="it") == kept
    assert clean_text(f" \ufeff{kept}", what="it") == kept and clean_text("  ", what="it") == ""


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": NaN}', "[-Infinity]", "{", "", "\ud83d"])
def test_json_that_cannot_be_read_has_one_error(text: str) -> None:
    with pytest.raises(BadText, match="not JSON"):
        parse_json(text)


def test_files_are_read_as_utf8_and_named_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffa\r\n\r\ncaf\u00e9\rb\u2028c\n\ufeff\n".encode())
    assert list(read_lines(path)) == [(1, "a"), (3, "caf\u00e9"), (4, "b\u2028c")]
    assert read_captions(str(path)) == ("a", "caf\u00e9", "b\u2028c")
    path.write_bytes("a\ncaf\u00e9\n".encode("cp1252"))
    with pytest.raises(ValueError, match=rf"captions: {path}, line 2: byte 0xe9 in .* is not UTF-8"):
        read_captions(str(path))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        path.write_bytes("a cat".encode(encoding))
        with pytest.raises(BadText, match=rf"{path} is not UTF-8 but UTF-16"):
            read_text(path)
        with pytest.raises(BadText, match=r"caption lines\.txt: not UTF-8"):
            read_caption(path)
    path.write_bytes(b"a" * (1 << 20) + b"bc")
    with pytest.raises(BadText, match="more than 1048576 bytes"):
        read_caption(path)
