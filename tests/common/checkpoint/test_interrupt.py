"""Runs that are stopped save a checkpoint first, from which they go on to the bit."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import TrainableEMA
from sparsight.common.checkpoint.file import read_checkpoint, read_header
from sparsight.common.checkpoint.interrupt import NAME
from tests.tiny_run import At, Line, data, trainer


def send(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise RuntimeError("a fault of the data")


def end_state(folder: Path) -> dict[str, Any]:
    saved = read_checkpoint(folder / "checkpoints" / "step=8.ckpt")
    average = next(state for name, state in saved["callbacks"].items() if name.startswith("TrainableEMA"))
    moments = saved["optimizer_states"][0]["state"]
    return {
        **saved["state_dict"],
        **{f"average.{name}": value for name, value in average["average"].items()},
        **{f"{name}.{key}": value for name, state in moments.items() for key, value in state.items()},
    }


STOPS = {
    "ctrl_c": (lambda: At(5, send(signal.SIGINT)), 130, 6),
    "preempted": (lambda: At(5, send(signal.SIGTERM)), 143, 6),
    "preempted_while_validating": (lambda: At(4, send(signal.SIGTERM), hook="on_validation_batch_start"), 143, 4),
    "exception": (lambda: At(5, fail), None, 5),
    "exception_while_validating": (lambda: At(4, fail, hook="on_validation_epoch_end"), None, 4),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_goes_on_to_the_bit(
    tmp_path: Path, stop: str, accumulate: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the middle of an epoch; validation swaps the average in, which must not be saved as the weights."""
    make, code, step = STOPS[stop]
    validation = {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate, **validation}
    images = {"val_share": 0.25}
    whole = trainer(tmp_path / "whole", TrainableEMA(0.5), **options)
    whole.fit(Line(), datamodule=data(tmp_path, **images))
    stopped = trainer(tmp_path / "stopped", make(), TrainableEMA(0.5), **options)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with caplog.at_level("INFO"), pytest.raises((SystemExit, RuntimeError)) as caught:
        stopped.fit(Line(), datamodule=data(tmp_path, **images))
    assert getattr(caught.value, "code", None) == code
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    saved = tmp_path / "stopped" / "checkpoints" / NAME
    if "validating" in stop:
        step = stopped.global_step
    assert read_header(saved).step == step
    assert f"ckpt_path={str(saved)!r}" in caplog.text, "the line that goes on"
    trainer(tmp_path / "stopped", TrainableEMA(0.5), **options).fit(
        Line(), datamodule=data(tmp_path, **images), resume=True
    )
    wanted, got = end_state(tmp_path / "whole"), end_state(tmp_path / "stopped")
    assert wanted.keys() == got.keys() and float(wanted["line.bias"].abs()) > 0.01
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_a_run_that_ends_between_two_saves_leaves_its_end_and_goes_on_from_it_to_the_bit(tmp_path: Path) -> None:
    """The end lies in the middle of an epoch, and behind a validation."""
    options: dict[str, Any] = {"val_check_interval": 2, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    images = {"val_share": 0.25}
    whole = trainer(tmp_path / "whole", TrainableEMA(0.5), **options)
    whole.fit(Line(), datamodule=data(tmp_path, **images))
    first = trainer(tmp_path / "parts", TrainableEMA(0.5), **options | {"max_steps": 5})
    first.fit(Line(), datamodule=data(tmp_path, **images))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert read_header(last).step == 5 and first.checkpoint_callback._every_n_train_steps == 2
    trainer(tmp_path / "parts", TrainableEMA(0.5), **options).fit(
        Line(), datamodule=data(tmp_path, **images), ckpt_path=last
    )
    wanted, got = end_state(tmp_path / "whole"), end_state(tmp_path / "parts")
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_nothing_is_saved_after_the_guard_spoke_or_in_the_middle_of_a_step(tmp_path: Path) -> None:
    def spoil() -> None:
        raise FloatingPointError("not finite")

    for name, callback, reason in (
        ("spoilt", At(3, spoil), "the state may hold numbers that are not finite"),
        ("half_way", At(4, fail, hook="on_train_batch_end"), "an optimiser step was under way"),
        ("before_any_step", At(0, fail), None),
    ):
        with (
            warnings.catch_warnings(record=True) as said,
            pytest.raises((RuntimeError, FloatingPointError)),
        ):
            warnings.simplefilter("always")
            trainer(tmp_path / name, callback).fit(Line(), datamodule=data(tmp_path))
        assert not list((tmp_path / name).rglob(NAME)), name
        assert (reason is not None) == any("no checkpoint is saved" in str(warning.message) for warning in said)
        assert reason is None or any(reason in str(warning.message) for warning in said)


def test_nothing_is_saved_where_checkpoints_are_off(tmp_path: Path) -> None:
    off = trainer(tmp_path, At(3, fail))
    off.callbacks = [callback for callback in off.callbacks if type(callback).__name__ != "ModelCheckpoint"]
    with pytest.raises(RuntimeError):
        off.fit(Line(), datamodule=data(tmp_path))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_command_is_told_as_it_was_given(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.command = ["fit", "--config", "my config", "--ckpt_path", "last", "--resume=true", "--trainer.max_steps=8"]
    assert made._how_to_go_on(Path("a b.ckpt")) == (
        "sparsight fit --config 'my config' --trainer.max_steps=8 --ckpt_path 'a b.ckpt'"
    )
