"""The journal of finished work: whole lines are used whatever happened to others, and nothing that was altered."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsight.common.disk.journal import FORMAT, Journal, check_about, read_results

ABOUT = {"device": "this", "date": "monday"}
WORK = {"k0": 0, "k1": [1, {"x": None}], "k2": "two \u00e9 lines\n", "k3": 3.5}
FORMAT_1 = """{"device": "this", "date": "monday"}
{"key": "k0", "result": 0}
{"key": "k1", "result": [1, {"x": null}]}
{"key": "k2", "result": "two \\u00e9 lines\\n"}
{"key": "k3", "result": 3.5}
"""


def filled(path: Path) -> list[bytes]:
    """Lines of a journal of ``WORK``."""
    journal = Journal(path, ABOUT)
    for key, result in WORK.items():
        journal.add(key, result)
    return path.read_bytes().splitlines(keepends=True)


def test_a_journal_keeps_results_and_drops_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    journal = Journal(path, ABOUT)
    journal.add("a", [1, 2])
    journal.add("b", {"x": None})
    with path.open("a") as file:
        file.write('{"key": "c", "res')
    again = Journal(path, ABOUT | {"date": "tuesday"})
    assert again.results == {"a": [1, 2], "b": {"x": None}}
    assert again.about == ABOUT
    again.add("c", 3)
    assert Journal(path, ABOUT).results == {"a": [1, 2], "b": {"x": None}, "c": 3}


def test_a_journal_of_another_device_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "rows.jsonl", ABOUT)
    with pytest.raises(ValueError, match="begun with device 'this', now it is 'that'"):
        Journal(tmp_path / "rows.jsonl", ABOUT | {"device": "that"})


def test_of_nested_facts_the_one_that_differs_is_named(tmp_path: Path) -> None:
    Journal(tmp_path / "rows.jsonl", {"model": {"name": "a" * 1000, "hash": "this"}})
    with pytest.raises(ValueError, match=r"begun with model\.hash 'this', now it is 'that'"):
        Journal(tmp_path / "rows.jsonl", {"model": {"name": "a" * 1000, "hash": "that"}})


def test_a_journal_of_the_first_format_is_read_and_goes_on_in_todays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(FORMAT_1)
    check_about(path, ABOUT)
    assert read_results(path) == WORK and path.read_text() == FORMAT_1
    Journal(path, ABOUT).add("k4", 4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["journal_format"] == FORMAT and lines[0]["about"] == ABOUT
    assert all("crc" in line for line in lines) and read_results(path) == WORK | {"k4": 4}


def test_a_journal_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"journal_format": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl has format 3"):
        Journal(path, ABOUT)


DAMAGE = {
    "zeros": lambda line: b"\0" * len(line[:-1]) + b"\n",
    "cut": lambda line: line[: len(line) // 2] + b"\n",
    "joined": lambda line: line[:-1],
    "no text": lambda line: b"\xff\xfe" + line,
    "altered": lambda line: line.replace(b"1", b"7", 1),
    "no object": lambda line: b"[1, 2]\n",
    "deep": lambda line: b"[" * 100_000 + b"\n",
    "digits": lambda line: b"9" * 5000 + b"\n",
    "without its sum": lambda line: b'{"key": "k1", "result": 5}\n',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_left_out_counted_and_worked_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = filled(path)
    lines[2] = DAMAGE[damage](lines[2])  # of k1
    path.write_bytes(b"".join(lines))
    lost = {"k1", "k2"} if damage == "joined" else {"k1"}
    with caplog.at_level(logging.WARNING):
        journal = Journal(path, ABOUT)
    assert journal.results == {key: result for key, result in WORK.items() if key not in lost}
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 damaged lines are left out and their work is done again (line 3)"
    ]
    for key in lost:
        journal.add(key, WORK[key])
    caplog.clear()
    assert read_results(path) == WORK and not caplog.records


def test_a_line_that_comes_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = filled(path)
    path.write_bytes(b"".join([*lines, lines[2], lines[4]]))
    assert Journal(path, ABOUT).results == WORK


@pytest.mark.parametrize("content", [b"\0" * 40, b"\0" * 40 + b"\n", b'{"device": "th\n', b"\xff\n", b"[]\n"])
def test_a_damaged_first_line_is_an_error_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content + b"".join(filled(tmp_path / "other.jsonl")[1:]))
    for read in (lambda: Journal(path, ABOUT), lambda: read_results(path), lambda: check_about(path, ABOUT)):
        with pytest.raises(ValueError, match=r"rows\.jsonl: its first line, .*, is damaged: move the file away"):
            read()


def test_a_second_process_that_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, ABOUT)
    imports = "from pathlib import Path; from sparsight.common.disk.journal import Journal"
    code = f"{imports}; Journal(Path({str(path)!r}), {ABOUT})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert other.returncode != 0 and "is being written by another process" in other.stderr
    journal.add("a", 1)
    assert read_results(path) == {"a": 1}


def damaged_anywhere(data: st.DataObject, path: Path) -> None:
    """Whatever happens to bytes of a journal, what it answers was written, or it says that it is damaged."""
    whole = path.with_name("whole.jsonl")
    content = bytearray(whole.read_bytes() if whole.exists() else b"".join(filled(whole)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = data.draw(st.integers(start, min(len(content), start + 60)))
        content[start:end] = data.draw(st.one_of(st.binary(max_size=20), st.just(bytes(end - start)), st.just(b"\n")))
        if not content:
            break
    path.write_bytes(content)
    known: dict[str, Any] = WORK
    try:
        found = Journal(path, ABOUT).results
    except ValueError as error:
        assert path.name in str(error)
        return
    assert all(key in known and known[key] == result for key, result in found.items())
    assert read_results(path) == found


CASES = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=150, **CASES)
@given(data=st.data())
def test_damage_anywhere(data: st.DataObject, tmp_path: Path) -> None:
    damaged_anywhere(data, tmp_path / "rows.jsonl")


@pytest.mark.faults
@settings(max_examples=5000, **CASES)
@given(data=st.data())
def test_damage_anywhere_at_length(data: st.DataObject, tmp_path: Path) -> None:
    damaged_anywhere(data, tmp_path / "rows.jsonl")
