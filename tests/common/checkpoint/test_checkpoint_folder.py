"""Checkpoints in parts count once their marker stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as parts

from sparsight.common.checkpoint.find import newest_whole, options_in
from sparsight.common.checkpoint.folder import MARKER, REST, is_in_parts, remove_folder, seal, verify_folder
from sparsight.common.disk.files import sweep
from sparsight.common.errors import CheckpointError
from tests.tiny_run import Line, data, trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    parts.save({"state_dict": {"weight": torch.arange(1000.0)}}, checkpoint_id=path, no_dist=True)
    torch.save({"global_step": 4, "lr_schedulers": [], "hyper_parameters": {"rate": 0.1}}, path / REST)
    return path


def test_a_folder_without_its_marker_is_refused(folder: Path, tmp_path: Path) -> None:
    assert is_in_parts(folder)
    rest = (folder / REST).read_bytes()
    (folder / REST).write_bytes(rest[:-20])
    for check in (verify_folder, lambda path: newest_whole(trainer(tmp_path), True)):
        with pytest.raises(CheckpointError, match=r"last\.ckpt was never finished"):
            check(folder)
    (folder / REST).write_bytes(rest)
    seal(folder)
    about = verify_folder(folder)
    assert (about.format, about.step, about.resumable, about.hyper_parameters) == (1, 4, True, {"rate": 0.1})
    assert newest_whole(trainer(tmp_path), True) == folder


def test_a_folder_of_before_there_were_markers_is_read(folder: Path, tmp_path: Path) -> None:
    """Lightning wrote the rest last, so that it tells whether the parts are complete."""
    about = verify_folder(folder)
    assert (about.format, about.step, about.resumable, about.hyper_parameters) == (0, 4, True, {"rate": 0.1})
    assert newest_whole(trainer(tmp_path), True) == folder
    assert options_in(folder) == {"rate": 0.1}
    next(folder.glob(".metadata")).unlink()
    with pytest.raises(CheckpointError, match="never finished"):
        verify_folder(folder)


def test_a_folder_that_is_being_removed_is_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Path] = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: left.append(path))  # killed here
    remove_folder(folder)
    assert not folder.exists() and left[-1].name.startswith(".") and not (left[-1] / MARKER).exists()


def test_every_part_is_compared(folder: Path) -> None:
    seal(folder)
    for file in [path for path in folder.iterdir() if path.name != MARKER]:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=rf"last\.ckpt is damaged: {file.name} is not what was written"):
            verify_folder(folder)
        file.unlink()
        with pytest.raises(CheckpointError, match=file.name):
            verify_folder(folder)
        file.write_bytes(content)
    verify_folder(folder)
    (folder / MARKER).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        verify_folder(folder)


def test_other_strategies_say_what_they_cannot_read(folder: Path, tmp_path: Path) -> None:
    seal(folder)
    with pytest.raises(CheckpointError, match="save_distributed_checkpoint: false"):
        trainer(tmp_path).fit(Line(), datamodule=data(tmp_path), ckpt_path=folder)


def test_removed_and_left_folders_go_as_files_do(folder: Path) -> None:
    seal(folder)
    left = folder.with_name(f".last.{2**22 + 1}.part.ckpt")  # no process has such a number
    folder.rename(left)
    assert sweep(left.parent) == [left] and not left.exists()
    left.mkdir()
    remove_folder(left)
    assert not left.exists()
