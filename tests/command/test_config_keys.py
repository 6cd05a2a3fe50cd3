"""The key that a message is given in front: only one that it speaks of."""

from __future__ import annotations

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from sparsight.command.config_keys import named_key, place_of

CONFIG = Namespace(
    trainer=Namespace(accelerator="auto", default_root_dir="runs", limit_train_batches=3),
    model=Namespace(class_path="lightning_modules.DenoiserTraining", init_args=Namespace(pretrained="teacher")),
)


class Failing(Trainer):
    """At work when an error is raised, as it always is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def work(self) -> None:
        """Raise it."""
        raise ValueError(self.text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nothing was trained: give a checkpoint", None),
        ("the seed of two runs differs", None),
        ("set it by hand, as auto finds none", None),
        ("`limit_train_batches` is larger than 1.0", "trainer.limit_train_batches is larger than 1.0"),
        ("too large for limit_train_batches", "trainer.limit_train_batches: too large for limit_train_batches"),
    ],
)
def test_a_message_of_a_run_names_a_trainer_option_only_if_it_speaks_of_it(text: str, told: str | None) -> None:
    try:
        Failing(text).work()
    except ValueError as error:
        assert named_key(text, place_of(error.__traceback__, CONFIG), error) == (told or text)
