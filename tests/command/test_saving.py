"""How often a run is saved is a number; a ModelCheckpoint of one's own says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from sparsight.command.arguments import read_config
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.errors import ConfigurationError


def savers(folder: Path, **options: Any) -> list[ModelCheckpoint]:
    trainer = SparsightTrainer(default_root_dir=folder, accelerator="cpu", logger=False, **options)
    return [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]


def test_a_number_of_steps_saves_the_newest_and_last(tmp_path: Path) -> None:
    [saver] = savers(tmp_path, checkpoint_every_n_steps=7)
    assert (saver._every_n_train_steps, saver.save_last, saver.save_top_k) == (7, True, 1)
    own = ModelCheckpoint(tmp_path, every_n_train_steps=3)
    assert savers(tmp_path, checkpoint_every_n_steps=7, callbacks=[own]) == [own]
    assert not savers(tmp_path, checkpoint_every_n_steps=7, enable_checkpointing=False)
    assert savers(tmp_path)[0]._every_n_train_steps == 0  # Lightning's own, at the end of every epoch
    with pytest.raises(ConfigurationError, match="checkpoint_every_n_steps is 0; allowed: 1 or more, or null"):
        savers(tmp_path, checkpoint_every_n_steps=0)


@pytest.mark.parametrize("path", sorted(Path("configs/experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_say_how_often_they_are_saved(path: Path) -> None:
    trainer = read_config(f"experiment/{path.stem}")["trainer"]
    assert trainer["checkpoint_every_n_steps"] >= 1
    assert not [each for each in trainer["callbacks"] if each["class_path"].endswith("ModelCheckpoint")]
