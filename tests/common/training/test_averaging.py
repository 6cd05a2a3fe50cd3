"""A moving average is known by what it keeps, whatever its class is called."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from callbacks import TrainableEMA
from sparsight.common.training.averaging import average_in, averaging


class Smoothed(TrainableEMA):
    """A user's own."""


def test_an_average_of_another_name_counts() -> None:
    own = Smoothed()
    own.average = {"w": torch.ones(2)}
    options = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    assert averaging(Trainer(callbacks=[own], **options)) is own
    assert averaging(Trainer(**options)) is None
    saved = {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}, own.state_key: own.state_dict()}
    found = average_in(saved)
    assert found is not None and torch.equal(found["w"], torch.ones(2))
    assert average_in({"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}}) is None
