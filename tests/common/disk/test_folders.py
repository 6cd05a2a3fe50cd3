"""Folders appear whole, are there at every moment while they are replaced, and leave nothing of killed processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparsight.common.disk import folders
from sparsight.common.disk.folders import appear, exchange, put_back, whole_folder


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def filled(folder: Path, text: str) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not swap")
def test_a_folder_is_there_at_every_moment_while_it_is_replaced(tmp_path: Path) -> None:
    destination = filled(tmp_path / "out", "0")
    if not exchange(filled(tmp_path / "one", ""), filled(tmp_path / "other", "")):
        pytest.skip("this file system does not swap")
    missing, done = list[int](), threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                os.stat(destination)
            except FileNotFoundError:
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(60):
        appear(filled(tmp_path / f".out.{number}", str(number)), destination)
        assert (destination / "sub" / "file").read_text() == str(number)
    done.set()
    watcher.join()
    assert not missing and names(tmp_path) == ["one", "other", "out"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_and_made_whether_or_not_names_can_be_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    for text in ("first", "second"):
        with whole_folder(tmp_path / "deep" / "out") as partial:
            filled(partial / "inner", text)
        assert (tmp_path / "deep" / "out" / "inner" / "sub" / "file").read_text() == text
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "deep" / "out") as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["inner"]


def test_without_swapping_a_failure_puts_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    destination = filled(tmp_path / "out", "earlier")
    with pytest.raises(OSError, match="No space"):
        appear(filled(tmp_path / "new", "later"), destination)
    assert (destination / "sub" / "file").read_text() == "earlier" and names(tmp_path) == ["new", "out"]


@pytest.mark.parametrize("name", [".out.{dead}.earlier", ".out.0a1b2c3d.earlier"])
def test_what_a_killed_process_had_moved_away_returns(tmp_path: Path, dead: int, name: str) -> None:
    filled(tmp_path / name.format(dead=dead), "earlier")
    filled(tmp_path / f".out.{dead}.partial", "half")
    put_back(tmp_path / "out")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "sub" / "file").read_text() == "earlier"


def test_leftovers_are_swept_and_what_others_are_writing_stays(tmp_path: Path, dead: int) -> None:
    filled(tmp_path / "out", "now")
    for name in (f".out.{dead}.earlier", f".out.{dead}.partial", ".out.0a1b2c3d.partial"):
        filled(tmp_path / name, "old")
    kept = [f".out.{os.getpid()}.partial", f".other.{dead}.partial", f".out.{dead}.notes", f"out.{dead}.partial"]
    for name in kept:
        filled(tmp_path / name, "kept")
    (tmp_path / f".out.{dead}.earlier2").touch()
    put_back(tmp_path / "out")
    assert names(tmp_path) == sorted([*kept, "out", f".out.{dead}.earlier2"])
    put_back(tmp_path / "no" / "such" / "folder")


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    filled(tmp_path / "disk" / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    with whole_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("new")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "real" / "file").read_text() == "new"
    assert names(tmp_path) == ["disk", "out"] and names(tmp_path / "disk") == ["real"]
