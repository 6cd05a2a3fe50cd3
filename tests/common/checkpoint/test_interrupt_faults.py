"""Signals at bad moments: a second one while the checkpoint is written, and processes that cannot agree."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import TrainableEMA
from sparsight.common.checkpoint import interrupt
from sparsight.common.checkpoint.file import read_checkpoint, read_header, verify
from sparsight.common.checkpoint.interrupt import NAME
from tests.tiny_processes import server, together
from tests.tiny_run import At, Line, data, trainer


def stop_twice(folder: Path) -> None:
    """Ctrl-C in the fifth step, and again when the checkpoint is written but has not got its name."""
    replace = os.replace

    def again(source: Any, target: Any, **options: Any) -> None:
        if Path(target).name == NAME:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        replace(source, target, **options)

    os.replace = again  # type: ignore[assignment]
    stop = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer(folder, stop).fit(Line(), datamodule=data(folder))


def test_a_second_ctrl_c_while_saving_ends_at_once_and_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    child = server().Process(target=stop_twice, args=(tmp_path,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGINT
    assert not list(tmp_path.rglob(NAME)) and verify(tmp_path / "checkpoints" / "last.ckpt").step == 6
    resumed = trainer(tmp_path)
    resumed.fit(Line(), datamodule=data(tmp_path), resume=True)
    assert resumed.global_step == 8 and not list(tmp_path.rglob(".*.part.*")), "what was half written is swept"


def fail() -> None:
    raise RuntimeError("a fault of the data")


def run_pair(
    rank: int, folder: Path, first: tuple[int, Callable[[], None]], second: tuple[int, Callable[[], None]]
) -> None:
    interrupt.AGREE_SECONDS = 3
    images = folder / str(rank)
    images.mkdir()
    made = trainer(folder, At(*(first, second)[rank]), devices=2, strategy="ddp")
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            made.fit(Line(), datamodule=data(images))
        except (RuntimeError, SystemExit) as error:
            told = [str(each.message) for each in said if "no checkpoint is saved" in str(each.message)]
            end = f"{type(error).__name__} {getattr(error, 'code', '')}\n{time.monotonic() - began:.1f}\n{told}"
            (folder / f"ended{rank}").write_text(end)


def wait() -> None:
    time.sleep(9)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def nothing() -> None:
    """Train on."""


PAIRS: dict[str, tuple[tuple[int, Callable[[], None]], tuple[int, Callable[[], None]], bool]] = {
    "one fails while the other is busy": ((3, fail), (3, wait), False),
    "both fail in other steps": ((3, fail), (4, fail), False),
    "both fail in one step": ((3, fail), (3, fail), True),
    "the second is told to end": ((0, nothing), (3, terminate), True),
    "both are told to end, one after the other": ((3, terminate), (4, terminate), True),
}
MARKS = {"one fails while the other is busy": pytest.mark.faults, "both fail in other steps": pytest.mark.slow}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=MARKS.get(kind, ())) for kind in PAIRS])
def test_processes_save_together_or_not_at_all(tmp_path: Path, kind: str) -> None:
    first, second, saved = PAIRS[kind]
    together(run_pair, tmp_path, first, second)
    ended = (tmp_path / "ended0").read_text().splitlines()
    assert float(ended[1]) < 60
    assert (" 143" in ended[0]) == ("told to end" in kind)
    assert bool(list(tmp_path.rglob(NAME))) == saved
    if saved:
        assert verify(tmp_path / "checkpoints" / NAME).step in (3, 4, 5)
    else:
        assert "did not agree on a step" in ended[2]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a job of one process, without the command that asks for the job again."""
    job = {"NTASKS": "1", "JOB_NAME": "run", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", str(tmp_path))
    usual = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, usual)


def ask_again() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.usefixtures("slurm")
def test_slurm_saves_for_its_queue_and_ours_for_the_end(tmp_path: Path) -> None:
    """SIGUSR1 is Lightning's, which saves and asks for the job again; SIGTERM, which follows, ours."""
    with pytest.raises(SystemExit) as stop:
        trainer(tmp_path, At(3, ask_again), At(5, terminate)).fit(Line(), datamodule=data(tmp_path))
    assert stop.value.code == 143
    queued, saved = (read_checkpoint(tmp_path / name) for name in ("hpc_ckpt_1.ckpt", "checkpoints/step=4.ckpt"))
    assert queued["global_step"] == 4, "at the end of the step in which the signal came"
    assert all(torch.equal(queued["state_dict"][name], value) for name, value in saved["state_dict"].items())
    assert queued["loops"] == saved["loops"]
    assert read_header(tmp_path / "checkpoints" / NAME).step == 6
    again = trainer(tmp_path)
    again.fit(Line(), datamodule=data(tmp_path), resume=True)
    assert again.ckpt_path is not None and Path(again.ckpt_path).name == NAME and again.global_step == 8


@pytest.mark.usefixtures("slurm")
def test_slurm_does_not_save_averages_as_weights(tmp_path: Path) -> None:
    """They stand in the weights' place while a validation runs."""
    validation: dict[str, Any] = {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    asked = At(4, ask_again, hook="on_validation_batch_start")
    trainer(tmp_path, asked, TrainableEMA(0.5), **validation).fit(Line(), datamodule=data(tmp_path, val_share=0.25))
    queued = read_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    average = next(state for name, state in queued["callbacks"].items() if name.startswith("TrainableEMA"))["average"]
    assert queued["global_step"] == 5 and not torch.equal(queued["state_dict"]["line.bias"], average["line.bias"])
