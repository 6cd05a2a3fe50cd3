"""Hashes of files of weights: read once, and once more as soon as a file is not what it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsight.common.disk import remembered_hash as module
from sparsight.common.disk.remembered_hash import cache_folder, remembered_hash
from sparsight.common.disk.stored_state import StoredState
from sparsight.common.hashes import SHA256, is_state, state_hash


class Counted(StoredState):
    """Counts the tensors that are read."""

    asked_for = 0

    def read(self, name: str) -> torch.Tensor:
        self.asked_for += 1
        return super().read(name)


def asked(*files: Path) -> tuple[str, int]:
    """Hash, and tensors that were read for it."""
    state = Counted(files)
    return remembered_hash(state), state.asked_for


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files, which count as old though they were just written."""
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SETTLED", -60.0)
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    save_file({"a": torch.arange(6.0).reshape(2, 3).bfloat16(), "n": torch.arange(3)}, paths[0])
    save_file({"b": torch.ones(2, 3)}, paths[1])
    return paths


def test_files_are_read_once_and_the_hash_is_that_of_the_weights(
    weights: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsight.common.hashes._BLOCK", 4)  # numbers that are made float32 at a time
    wanted = state_hash(
        {name: t.float() if t.is_floating_point() else t for p in weights for name, t in load_file(p).items()}
    )
    assert asked(*weights) == (wanted, 3)
    assert asked(*weights) == (wanted, 0)
    assert wanted.startswith("xxh3-128:")
    assert is_state(state_hash(StoredState(weights), like=SHA256), StoredState(weights))  # as earlier versions wrote it
    assert asked(weights[0])[1] == 2


def test_a_file_that_changed_is_read_again_whatever_its_times_say(weights: list[Path]) -> None:
    before, _ = asked(*weights)
    times = weights[1].stat()
    save_file({"b": torch.full((2, 3), 2.0)}, weights[1])  # of the same size
    os.utime(weights[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights[1].stat().st_size == times.st_size and weights[1].stat().st_mtime_ns == times.st_mtime_ns
    after, read = asked(*weights)
    assert after != before and read == 3


def test_a_link_is_the_file_that_it_leads_to(weights: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "snapshot.safetensors"
    link.symlink_to(weights[0])
    first, _ = asked(link)
    link.unlink()
    link.symlink_to(weights[1])
    assert asked(link)[0] != first
    assert asked(weights[0]) == (first, 0)


@pytest.mark.parametrize("content", ["", "[]", '{"hash": 1}', "no JSON"])
def test_what_is_damaged_is_not_trusted(weights: list[Path], content: str) -> None:
    wanted, _ = asked(*weights)
    (kept,) = (cache_folder() / "hashes").iterdir()
    told = json.loads(kept.read_text())
    kept.write_text(content)
    assert asked(*weights) == (wanted, 3)
    kept.write_text(json.dumps(told | {"hash": "md5:0"}))
    assert asked(*weights) == (wanted, 3)
    kept.write_text(json.dumps(told | {"files": []}))
    assert asked(*weights) == (wanted, 3)


def test_what_was_just_written_or_has_no_place_is_not_remembered(
    weights: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module, "SETTLED", 60.0)
        assert asked(*weights)[1] == asked(*weights)[1] == 3
    cache_folder().write_text("a file where the folder should be")
    assert asked(*weights)[1] == asked(*weights)[1] == 3
