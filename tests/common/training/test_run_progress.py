"""What a run says of itself: its parts, and the line of progress in a terminal and in a log file."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelSummary
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import ParameterSummary, RunProgress
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.training.progress.pace import Pace
from sparsight.common.training.stage_clock import StageClock


class Stage:
    """Three steps of something."""

    steps = 3
    objective = "something"


class Module(LightningModule):
    """Trains one weight in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.clock = StageClock([Stage(), Stage()])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Log as the modules of the project do."""
        loss = self.weight + batch.sum()
        self.log("train/loss", loss.detach() * 0 + 0.12345, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log for the line, and for loggers only."""
        self.log("val/error", 0.5, prog_bar=True)
        self.log("val/other", 0.5)

    def configure_optimizers(self) -> Any:
        """Any."""
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, *, terminal: bool, **options: Any) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, legacy_windows=False)
    progress = RunProgress(**options, console=console)
    trainer = SparsightTrainer(
        max_steps=6, val_check_interval=3, callbacks=[progress], logger=False, enable_checkpointing=False,
        default_root_dir=folder, accelerator="cpu", enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(torch.zeros(12), batch_size=2)
    trainer.fit(Module(), loader, DataLoader(torch.zeros(4), batch_size=2))
    return stream.getvalue()


def test_a_log_file_gets_whole_lines(tmp_path: Path) -> None:
    lines = fit(tmp_path, terminal=False, seconds=0).splitlines()
    steps = [line for line in lines if "step" in line and "validated" not in line]
    assert [line.partition(",")[0] for line in steps] == ["stage 1 of 2"] * 3 + ["stage 2 of 2"] * 3
    assert [line.split(", ")[1] for line in steps] == [f"step {step}/6" for step in range(1, 7)]
    assert steps[-1] == "stage 2 of 2, step 6/6, 0:00:00 left, loss 0.123"
    assert [line for line in lines if "validated" in line] == [f"step {step}, validated: error 0.5" for step in (3, 6)]
    assert not any("\x1b" in line or "v_num" in line or "Epoch" in line for line in lines)


def test_a_log_file_is_left_alone_for_a_minute(tmp_path: Path) -> None:
    lines = fit(tmp_path, terminal=False).splitlines()
    assert [line for line in lines if "validated" not in line] == ["stage 2 of 2, step 6/6, 0:00:00 left, loss 0.123"]


def test_a_terminal_keeps_one_line(tmp_path: Path) -> None:
    text = fit(tmp_path, terminal=True)
    assert "6/6" in text and "0:00:00 left, loss 0.123" in text
    assert "step 3, validated: error 0.5" in text
    assert text.rpartition("\n")[0].splitlines()[-1].endswith("step 6, validated: error 0.5"), (
        "the line is left before it"
    )


def test_the_command_has_it_unless_told_otherwise() -> None:
    kinds = [type(each) for each in SparsightTrainer(logger=False, accelerator="cpu").callbacks]  # type: ignore[attr-defined]
    assert kinds.count(RunProgress) == kinds.count(ParameterSummary) == 1
    quiet = SparsightTrainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    assert quiet.progress_bar_callback is None
    quiet = SparsightTrainer(logger=False, accelerator="cpu", enable_model_summary=False)
    assert not any(isinstance(each, ModelSummary) for each in quiet.callbacks)  # type: ignore[attr-defined]
    own = RunProgress(seconds=5)
    assert SparsightTrainer(logger=False, accelerator="cpu", callbacks=own).progress_bar_callback is own
    assert pickle.loads(pickle.dumps(own)).seconds == 5
    with pytest.raises(ValueError, match="seconds"):
        RunProgress(seconds=-1)


def test_parts_are_printed_with_what_is_trained(tmp_path: Path) -> None:
    stream = io.StringIO()
    module = LightningModule()
    module.frozen = torch.nn.Linear(100, 10).requires_grad_(False)
    module.mixer = torch.nn.Linear(10, 10, bias=False)
    trainer = SparsightTrainer(logger=False, accelerator="cpu")
    ParameterSummary(console=Console(file=stream, width=80)).on_fit_start(trainer, module)
    text = stream.getvalue()
    assert [line.split()[1] for line in text.splitlines() if "Linear" in line] == ["frozen", "mixer"]
    assert "trained: 100 of 1.11 k parameters (9.0%)" in text and "FLOPs" not in text


def test_time_left_is_that_of_the_stage_that_runs() -> None:
    pace = Pace()
    assert pace.left(10) is None
    pace.reached(1, stage=0, now=100.0)  # took long: kernels were chosen
    assert pace.left(10) is None
    pace.reached(2, stage=0, now=102.0)
    pace.reached(3, stage=0, now=104.0)
    assert pace.left(10) == pytest.approx(14.0)
    assert pace.left(math.inf) is None
    pace.reached(4, stage=1, now=200.0)
    assert pace.left(10) is None
    pace.reached(5, stage=1, now=207.0)
    assert pace.left(10) == pytest.approx(35.0)
    assert pace.left(4) == 0.0
