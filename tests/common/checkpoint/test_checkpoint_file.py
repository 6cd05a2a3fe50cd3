"""Checkpoint files: whole or not there, named when they are damaged, and never a way for code to get in."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from safetensors.torch import save_file

from sparsight.common.checkpoint.file import local, read_checkpoint, read_header, verify, write_checkpoint
from sparsight.common.checkpoint.io import OrderedCheckpointIO, WholeCheckpointIO
from sparsight.common.errors import CheckpointError
from sparsight.common.finite import NonFiniteError
from tests.tiny_checkpoint import stored


class TestsKind(Enum):
    """No plain data."""

    __test__ = False
    ONE = 1


FIXTURES = Path(__file__).parents[2] / "fixtures" / "format_0"


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    return stored(FIXTURES / "diffusion")


def test_a_checkpoint_says_what_it_is_without_being_loaded(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "new" / "step=3.ckpt"
    write_checkpoint(checkpoint, path)
    about = verify(path)
    assert (about.format, about.step, about.resumable) == (1, 3, True)
    assert about.hash.startswith("sha256:") and about.saved_at > 0
    assert about.hyper_parameters["condition_dropout"] == 0.1
    read = read_checkpoint(path)
    assert read["format"] == 1
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(read["state_dict"][name], value)
    assert torch.load(path, weights_only=True, mmap=True).keys() == read.keys(), "torch alone reads it, too"
    assert [p.name for p in path.parent.iterdir()] == ["step=3.ckpt"]


def test_no_damage_goes_unnoticed(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "whole.ckpt"
    write_checkpoint(checkpoint, path)
    content = path.read_bytes()
    rng = random.Random(0)
    cuts = [content[: len(content) * eighth // 8] for eighth in range(8)] + [content[:-1]]
    flips = [flipped(content, rng.randrange(len(content)), rng.randrange(8)) for _ in range(150)]
    unnoticed = 0
    for number, damaged in enumerate((*cuts, *flips)):
        file = tmp_path / "damaged.ckpt"
        file.write_bytes(damaged)
        try:
            read = read_checkpoint(file)
        except CheckpointError as error:
            assert "damaged.ckpt" in str(error) and "\n" not in str(error)
            continue
        assert number >= len(cuts)
        unnoticed += 1  # such as a bit of the padding, or of a time
        assert str(read) == str(read_checkpoint(path))
    assert unnoticed < 60


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def test_other_files_are_named_in_one_line(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.ckpt").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"a": torch.ones(2)}, tmp_path / "tensors.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save(checkpoint, tmp_path / "old_way.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "folder").mkdir()
    reasons = {
        "weights.safetensors": "safetensors",
        "text.ckpt": "is no checkpoint",
        "empty.ckpt": "is empty",
        "tensors.ckpt": "no state_dict",
        "list.ckpt": "no state_dict",
        "old_way.ckpt": "is no checkpoint",
        "folder": "is a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(CheckpointError, match=f"{name}.*{reason}") as caught:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")


class Touch:
    """Pickled, it makes a file when it is read by who runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint | {"more": Touch(tmp_path / "ran")}, tmp_path / "code.ckpt")
    with pytest.raises(CheckpointError, match=r"code\.ckpt is not loaded"):
        WholeCheckpointIO().load_checkpoint(tmp_path / "code.ckpt")
    with pytest.raises(CheckpointError, match="weights_only"):
        WholeCheckpointIO().load_checkpoint(tmp_path / "code.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


ADDRESSES = [
    "http://127.0.0.1/a.ckpt",
    "https://hub/a.ckpt",
    "HTTPS://hub/a.ckpt",
    "s3://bucket/a.ckpt",
    "gs://bucket/a.ckpt",
    "hf://org/model/a.ckpt",
    "file:///tmp/a.ckpt",
    "simplecache::s3://bucket/a.ckpt",
    "zip://a.ckpt::http://hub/a.zip",
    "memory://a.ckpt",
    "registry:model:version:v2",
    Path("http://127.0.0.1/a.ckpt"),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_addresses_are_refused(address: str | Path) -> None:
    for attempt in (local, WholeCheckpointIO().load_checkpoint):
        with pytest.raises(CheckpointError, match="download it and name the file"):
            attempt(address)


def test_names_with_colons_are_files(tmp_path: Path) -> None:
    assert local("runs/12:30/last.ckpt") == Path("runs/12:30/last.ckpt")
    assert local(str(tmp_path / "a.ckpt")) == tmp_path / "a.ckpt"


def test_a_later_format_is_refused(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint | {"format": 7}, tmp_path / "later.ckpt")
    with pytest.raises(CheckpointError, match=r"later\.ckpt has format 7, and this version of Sparsight reads up to 1"):
        read_checkpoint(tmp_path / "later.ckpt")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A disk that is full, as the system tells it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint, path)
    size = path.stat().st_size
    for limit in (100, size // 2, size - 5000):
        with (
            files_up_to(limit),
            pytest.raises(CheckpointError, match=r"last\.ckpt could not be written: File too large"),
        ):
            write_checkpoint(checkpoint | {"global_step": 9}, path)
        assert read_header(path).step == 3
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_numbers_that_are_not_finite_are_not_saved(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    WholeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    next(iter(checkpoint["state_dict"].values()))[0] = torch.nan
    with pytest.raises(NonFiniteError):
        WholeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    assert not any(tensor.isnan().any() for tensor in read_checkpoint(tmp_path / "last.ckpt")["state_dict"].values())


def test_what_would_not_be_read_again_is_not_written(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    target = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint, target)
    for foreign, told in (({"at": Path("x")}, "Path"), ([TestsKind.ONE], "TestsKind"), (lambda: 0, "lambda")):
        with pytest.raises(CheckpointError, match=f"last.ckpt c.*{told}.*: keep plain data"):
            write_checkpoint(checkpoint | {"callbacks": {"Own": {"state": foreign}}}, target)
        assert read_checkpoint(target)["global_step"] == checkpoint["global_step"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_word_of_a_clipping_that_earlier_versions_kept_is_read(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    write_checkpoint(checkpoint | {"kept": GradClipAlgorithmType("value")}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["kept"] == "value"


class HeldCheckpointIO(WholeCheckpointIO):
    """Writes once it is allowed to, so that what is asked for meanwhile stands behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Event()
        self.allowed.set()

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        assert self.allowed.wait(60)
        super().save_checkpoint(*args, **kwargs)


def test_a_thread_removes_the_former_checkpoint_after_it_wrote_the_new_one(
    tmp_path: Path, checkpoint: dict[str, Any]
) -> None:
    held = HeldCheckpointIO()
    io = OrderedCheckpointIO(held)
    io.save_checkpoint(checkpoint, tmp_path / "one.ckpt")
    io.teardown()  # it is there
    held.allowed.clear()
    io.save_checkpoint(checkpoint, tmp_path / "two.ckpt")
    io.remove_checkpoint(tmp_path / "one.ckpt")
    with files_up_to(100), pytest.raises(CheckpointError, match=r"two\.ckpt could not be written"):
        held.allowed.set()
        io.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["one.ckpt"]
    with pytest.raises(CheckpointError, match=r"two\.ckpt could not be written"):  # told at the next one too
        io.save_checkpoint(checkpoint, tmp_path / "three.ckpt")
    with pytest.raises(CheckpointError, match=r"two\.ckpt could not be written"):
        io.teardown()
    (tmp_path / "three.ckpt").unlink(missing_ok=True)
    io._error = None
    held.allowed.clear()
    io.save_checkpoint(checkpoint, tmp_path / "two.ckpt")
    io.remove_checkpoint(tmp_path / "one.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["one.ckpt"]
    held.allowed.set()
    io.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["two.ckpt"]
