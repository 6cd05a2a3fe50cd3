"""The model that a healing one is compared with computes no image that the cache of vision features has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.command.cli import main
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.train.unpruned import UnprunedModel, unpruned_copy
from tests.tiny_batches import rows_seen
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tuning import SCORE, pruning, tuning_config, with_callback


def test_what_the_cache_has_is_not_computed_again_for_the_comparison(tmp_path: Path) -> None:
    options: dict[str, Any] = {"prune": SCORE, "healing": {"hidden": 0.5}, "compute": {"vision_cache_gib": 0.1}}
    config = with_callback(tuning_config(tmp_path, **options), pruning(begin=0, order="first"))
    cli = main(["fit", "--config", str(config), "--trainer.max_steps=1", "--trainer.limit_val_batches=0"])
    module, batch = cli.model, next(iter(cli.datamodule.train_dataloader()))
    module.log = lambda *_, **__: None
    images = sum(map(len, batch["image_keys"]))
    student, teacher = rows_seen(module.model), rows_seen(module.unpruned.model)

    def step() -> tuple[torch.Tensor, int, int]:
        student.clear()
        teacher.clear()
        return module.training_step(batch, 0), sum(student), sum(teacher)

    module.vision_cache.kept.clear()
    loss, computed, again = step()
    assert (computed, again) == (images, 0)
    module.unpruned.shared_tower = None  # as where the two towers differ
    other, computed, again = step()
    assert (computed, again) == (0, images)
    module.vision_cache = None
    plain, computed, again = step()
    assert (computed, again) == (images, images)
    torch.testing.assert_close((loss, other), (plain, plain))


@pytest.mark.parametrize("change", ["none", "weights", "layer"])
def test_only_a_tower_that_answers_alike_is_shared(change: str) -> None:
    student = tiny_lvlm("llava")
    model = unpruned_copy(student, torch.float32)
    (tower,) = find_parts(model).vision.values()
    if change == "weights":
        next(tower.parameters()).data += 1e-3
    if change == "layer":
        model.config.vision_feature_layer = -1
    assert UnprunedModel(model, student).shared_tower is (tower if change == "none" else None)
    two = tiny_lvlm("qwen3_vl")
    assert UnprunedModel(unpruned_copy(two, torch.float32), two).shared_tower is not None
