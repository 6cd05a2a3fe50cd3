"""Names that ModelCheckpoint and EarlyStopping watch and nothing logs: refused before training, or nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from sparsight.command.trainer import SparsightTrainer
from sparsight.common.checkpoint.file import read_header
from sparsight.common.errors import ConfigurationError
from tests.tiny_run import Line, data

VALIDATED = {"val_share": 0.25}


def fit(folder: Path, *callbacks: Callback, images: dict[str, Any] | None = None, **options: Any) -> SparsightTrainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    defaults = {"max_steps": 4, "max_epochs": -1, "default_root_dir": folder, "callbacks": list(callbacks)}
    made = SparsightTrainer(**quiet | defaults | options)  # type: ignore[arg-type]
    made.fit(Line(), datamodule=data(folder, **VALIDATED if images is None else images))
    return made


@pytest.mark.parametrize("kind", [ModelCheckpoint, EarlyStopping])
def test_a_name_that_no_validation_logs_is_refused_before_training(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"monitor of {kind.__name__} .* is 'val/losss', which no validation logs; logged are val/loss$",
    ):
        fit(tmp_path, kind(monitor="val/losss"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("how", ["no data", "no batches"])
@pytest.mark.parametrize("kind", [ModelCheckpoint, EarlyStopping])
def test_a_value_of_validation_needs_one(tmp_path: Path, kind: Any, how: str) -> None:
    options: dict[str, Any] = {"images": {}} if how == "no data" else {"limit_val_batches": 0}
    with pytest.raises(ConfigurationError, match=r"is 'val/loss', but nothing is validated: give data\.val"):
        fit(tmp_path, kind(monitor="val/loss"), **options)


def test_without_a_trial_the_first_validation_tells(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'val/losss', which no validation logs"):
        fit(tmp_path, ModelCheckpoint(monitor="val/losss"), num_sanity_val_steps=0, max_steps=9)


def test_a_callback_of_ones_own_may_log_it_later(tmp_path: Path) -> None:
    class Later(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                pl_module.log("val/mine", 1.0)

    with pytest.warns(UserWarning, match="'val/mine', which no validation logs"):
        ended = fit(tmp_path, Later(), ModelCheckpoint(monitor="val/mine"), max_steps=9, val_check_interval=3)
    assert ended.checkpoint_callback is not None and ended.checkpoint_callback.best_model_path  # type: ignore[attr-defined]


@pytest.mark.parametrize("monitor", ["train/losss", "val/loss"])
def test_what_would_be_lost_is_saved_at_the_end(tmp_path: Path, monitor: str) -> None:
    """A name of training that nothing logs, and a validation for which the run is too short."""
    with pytest.warns(UserWarning, match=f"ModelCheckpoint has saved nothing, as no value of '{monitor}' came"):
        fit(tmp_path, ModelCheckpoint(monitor=monitor), max_steps=3)
    assert read_header(next(tmp_path.rglob("end.ckpt"))).step == 3


@pytest.mark.parametrize("monitor", ["step", None, "val/loss"])
def test_nothing_more_is_saved_where_something_was(tmp_path: Path, monitor: str | None) -> None:
    fit(tmp_path, ModelCheckpoint(monitor=monitor), max_steps=9)
    assert list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("end.ckpt"))
