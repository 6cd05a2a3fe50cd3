"""Disks that are full or read-only, and processes of a distributed run that vanish."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.tiny_kills import Runs
from tests.tiny_reload import read_back_here
from tests.tiny_runs import SCENARIOS, trained

ROOT = Path(__file__).parents[2]
FIT = SCENARIOS["distillation"].arguments
SMALL = 20_000  # bytes: less than a checkpoint of these runs
CAPABILITY_VERSION, CAP_DAC_OVERRIDE = 0x20080522, 1  # linux/capability.h
SECONDS = 30.0  # in which no process of a broken run may be left


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    SCENARIOS["distillation"].prepare(work)
    return work


def small_files() -> None:
    """No file grows beyond a limit, as on a full disk."""
    read_back_here()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))


def bound_by_modes() -> None:
    """Without root's right to write where the mode of a folder forbids it."""
    read_back_here()
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, each for 32 capabilities, then for 32 more
    assert libc.capget(header, sets) == 0
    for position in (0, 1):
        sets[position] &= ~(1 << CAP_DAC_OVERRIDE)
    assert libc.capset(header, sets) == 0


def test_a_full_disk_ends_a_run_with_one_line_and_the_run_goes_on_later(folder: Path, runs: Runs) -> None:
    ended = runs.run(FIT, folder, before=small_files)
    last = ended.text.strip().splitlines()[-1]
    assert ended.code == 1 and "Traceback" not in ended.text, ended.text[-2000:]
    assert "checkpoints" in last and ".ckpt" in last, last
    assert not list((folder / "checkpoints").glob("*")), "nothing that is cut off stays"
    again = runs.run(FIT, folder, before=read_back_here)
    assert again.code == 0, again.text[-2000:]
    assert trained(folder)["global_step"] == 6


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which one checkpoint has room, and not three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.faults
def test_a_disk_that_fills_up_keeps_the_checkpoints_that_are_on_it(folder: Path, runs: Runs, tiny_disk: Path) -> None:
    (folder / "checkpoints").symlink_to(tiny_disk)
    ended = runs.run(FIT, folder, before=read_back_here)
    assert ended.code == 1 and "Traceback" not in ended.text, ended.text[-2000:]
    assert "No space left" in ended.text.strip().splitlines()[-1]
    for path in tiny_disk.iterdir():
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("place", ["checkpoints", "run"])
def test_a_folder_that_cannot_be_written_is_named_in_one_line(folder: Path, runs: Runs, place: str) -> None:
    (folder / place).mkdir(mode=0o555)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["callbacks"][2]["init_args"]["dirpath"] = "checkpoints" if place == "checkpoints" else None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    ended = runs.run(FIT, folder, before=bound_by_modes)
    assert ended.code == 1 and "Traceback" not in ended.text, ended.text[-2000:]
    assert place in ended.text.strip().splitlines()[-1], ended.text[-500:]


def ranks_of(process: int) -> list[int]:
    """Processes that a run has started to train beside it; imports start others for a moment."""
    found = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return [child for child in found if "LOCAL_RANK=" in _environment(child)]


def _environment(process: int) -> str:
    try:
        return Path(f"/proc/{process}/environ").read_text(errors="replace")
    except OSError:
        return ""


def runs_on(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["start", "training"])
@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_outlives_a_killed_one(folder: Path, rank: int, moment: str) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"]["stages"][1]["steps"] = 2000  # killed long before
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2")
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        first = subprocess.Popen(
            [sys.executable, "-m", "sparsight", *FIT, *two], cwd=folder, env=surroundings, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 240
        while not (ranks := ranks_of(first.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        (second,) = ranks
        while moment == "training" and not list(folder.glob("checkpoints/step=*")) and time.monotonic() < end:
            assert first.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        os.kill((first.pid, second)[rank], signal.SIGKILL)
        killed = time.monotonic()
        while (first.poll() is None or runs_on(second)) and time.monotonic() < killed + 4 * SECONDS:
            time.sleep(0.2)
        took = time.monotonic() - killed
        assert took < SECONDS, f"the other process ended {took:.0f} s after the one that was killed"
    finally:
        first.kill()
        first.wait()
    for path in folder.glob("checkpoints/*.ckpt"):
        if not path.name.startswith("."):
            torch.load(path, weights_only=True)
    shutil.rmtree(folder)
