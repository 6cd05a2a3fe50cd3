"""A list of methods in YAML: trained with a region, evaluated, exported, and refused in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blocks import DivPrune, FastV, Knockout, ShiftedGroups
from lightning_modules import LVLMEvaluation, SparseLayerTuning
from sparsight.command.cli import main
from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.model.provenance import FILE
from sparsight.lvlm.scores import BlockInfluence, ImageAttention
from sparsight.lvlm.surgery.retire import LayerPruning
from sparsight.lvlm.train.compute import TuningCompute
from sparsight.lvlm.train.healing import Healing
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_batches import batch_of
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_tuning import tuning_config, with_callback

RECIPE = [
    {"class_path": "HeadAblation", "init_args": {"heads": {2: [1]}}},
    {"class_path": "FastV", "init_args": {"layer": 3, "ratio": 0.5}},
    {"class_path": "DivPrune", "init_args": {"ratio": 0.5}},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "fast_vlm")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(base)
    return tmp_path


@pytest.mark.usefixtures("reload_here")
def test_a_region_is_tuned_under_a_recipe_and_the_export_says_so(folder: Path) -> None:
    export = {"class_path": "callbacks.ExportAtEnd", "init_args": {"output": str(folder / "out")}}
    config = with_callback(tuning_config(folder, recipe=RECIPE), export)
    cli = main(["fit", "--config", str(config)])
    assert cli.trainer.global_step == 4 and "val/loss" in cli.trainer.callback_metrics
    (record,) = (folder / "out").rglob(FILE)
    told = json.loads(record.read_text())["recipe"]
    assert [method["method"] for method in told] == ["DivPrune", "FastV", "HeadAblation"]
    assert told[1]["options"] == {"layer": 3, "ratio": 0.5, "positions": "keep"}
    assert "Trained under a recipe: DivPrune (ratio 0.5" in record.with_name("README.md").read_text()


def test_losses_and_their_gradients_are_those_of_the_edited_model(base: Path) -> None:
    losses = []
    for recipe in (None, [FastV(3), DivPrune(0.5)]):
        module = SparseLayerTuning(base=str(base), stages=[TuningStage(steps=1, lr=0.1)], recipe=recipe)
        batch: dict[str, Any] = {**batch_of("fast_vlm", module.model), "image_keys": [], "index": torch.arange(2)}
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        loss = module.training_step(batch, 0)
        loss.backward()
        losses.append(float(loss.detach()))
        grads = [p.grad for p in module.model.parameters() if p.requires_grad]
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_masks_of_training_alone_are_there_when_it_trains(base: Path) -> None:
    """Though the model, most of which is frozen, is in eval mode."""
    losses = {}
    for name, recipe in (("plain", None), ("groups", [ShiftedGroups(3)])):
        module = SparseLayerTuning(base=str(base), stages=[TuningStage(steps=1, lr=0.1)], recipe=recipe)
        module.train()
        batch: dict[str, Any] = {**batch_of("fast_vlm", module.model), "image_keys": [], "index": torch.arange(2)}
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        losses[name] = float(module.training_step(batch, 0).detach())
        with module.edited():
            losses[f"{name}, answering"] = float(
                answer_losses(module.model, batch["inputs"], batch["labels"])[0].mean()
            )
    assert losses["groups"] != pytest.approx(losses["plain"], abs=1e-3)
    assert losses["groups, answering"] == pytest.approx(losses["plain, answering"], abs=1e-5)


def test_evaluation_answers_under_the_recipe(folder: Path) -> None:
    found = []
    for name, recipe in (("plain", None), ("edited", RECIPE)):
        content = yaml.safe_load(tuning_config(folder).read_text())
        content["trainer"]["default_root_dir"] = str(folder / name)
        del content["trainer"]["val_check_interval"]
        content["model"] = {"class_path": "LVLMEvaluation", "init_args": {"base": str(folder / "base")}}
        content["model"]["init_args"] |= {"evaluation": {"new_tokens": 3}, "recipe": recipe}
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        cli = main(["validate", "--config", str(folder / "config.yaml")])
        found.append({key: float(value) for key, value in cli.trainer.callback_metrics.items()})
        assert "forward" not in vars(cli.model.model)
    plain, edited = found
    assert plain.keys() == edited.keys() and plain["val/loss"] != pytest.approx(edited["val/loss"], abs=1e-3)


def test_what_a_recipe_does_not_go_with_is_refused_before_work_begins(base: Path) -> None:
    options: dict[str, Any] = {"base": str(base), "stages": [TuningStage(steps=1, lr=0.1)], "recipe": [FastV(3)]}
    pruning = LayerPruning(BlockInfluence())
    for more, told in (
        ({"compute": TuningCompute(gradient_checkpointing=True)}, "set compute.gradient_checkpointing to false"),
        ({"healing": Healing(hidden=1.0)}, "set healing.hidden to 0"),
        ({"prune": pruning}, "prune changes"),
        ({"recipe": [FastV(3), FastV(3)]}, "both drop tokens before layer 3"),
        ({"recipe": [FastV(30)]}, "FastV is about none of the 6 layers"),
    ):
        with pytest.raises(ValueError, match=told):
            SparseLayerTuning(**options | more)
    with pytest.raises(ValueError, match=r"leave FastV out of model\.recipe"):
        LVLMEvaluation(base=str(base), recipe=[FastV(3)]).analyze([], [])


def test_layers_are_scored_under_a_recipe_that_keeps_tokens(base: Path) -> None:
    found = {}
    for name, recipe in (("plain", None), ("blind", [Knockout("question", "image", list(range(6)))])):
        module = LVLMEvaluation(base=str(base), recipe=recipe)
        batch = {**batch_of("fast_vlm", module.model), "image_keys": []}
        table = module.analyze([BlockInfluence(), ImageAttention("text")], [batch])
        found[name], facts = table.values, table.facts
    assert facts["recipe"] == [Knockout("question", "image", list(range(6))).record()]
    plain, blind = (found[name]["image_attention_text"] for name in ("plain", "blind"))
    assert all(
        0 < after < before / 2 for before, after in zip(plain, blind, strict=True)
    )  # the last word still sees it
    assert found["plain"]["block_influence"] != found["blind"]["block_influence"]
