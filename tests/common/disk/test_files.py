"""Files appear whole or not at all, and what killed processes left is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsight.common.disk.files import sweep, write_text, write_whole


def fail(part: Path) -> None:
    part.write_text("half")
    raise OSError("disk full")


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "table.csv", "whole")
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "table.csv", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("table.csv", "whole")]


def test_the_file_is_written_beside_its_target(tmp_path: Path) -> None:
    written = []
    write_whole(tmp_path / "new" / "table.csv", lambda part: (written.append(part), part.write_text("")))
    assert written[0].parent == tmp_path / "new" and written[0].suffix == ".csv"


def test_threads_may_write_one_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    texts = [str(number) * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for finished in [pool.submit(write_text, path, text) for text in texts * 4]:
            finished.result()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = {"last.ckpt", f".last.{os.getpid()}-1.part.ckpt", ".hidden.part.ckpt"}
    for name in {*kept, f".last.{ended.pid}-1.part.ckpt", f".last.{ended.pid}.part"}:
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
