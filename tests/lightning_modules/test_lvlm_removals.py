"""Why layers left is remembered: in the module, checkpoints and exports; and layers that nobody tunes may leave."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import SparseLayerTuning
from sparsight.command.cli import main
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.model.provenance import FILE, provenance
from sparsight.lvlm.scores import BlockInfluence, score_layers
from sparsight.lvlm.surgery.layer_record import LAYERS
from sparsight.lvlm.surgery.retire import LayerPruning
from sparsight.lvlm.surgery.selection import Explicit, Uniform
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_tuning import SCORE, STAGE, checkpoint, pruning, tuning_config, with_callback

EXPLICIT = {"rule": "Explicit", "options": {"layers": [1, 4]}}
LINEAR: dict[str, Any] = {"shape": "linear", "begin": 0, "end": 2, "rescore": True}


def exported(folder: Path, config: Path, file: Path) -> tuple[dict[str, Any], str]:
    """Record and card of an export from a checkpoint."""
    output = folder / "exported"
    arguments = ["--ckpt_path", str(file), "--weights", "raw", "--output", str(output), "--overwrite", "true"]
    main(["export", "--config", str(config), *arguments])
    return json.loads((output / FILE).read_text()), (output / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_the_numbers_that_layers_left_by_reach_the_export(tmp_path: Path) -> None:
    config = with_callback(tuning_config(tmp_path, prune=SCORE), pruning(**LINEAR))
    cli = main(["fit", "--config", str(config)])
    removals = cli.model.removals
    assert [removal["step"] for removal in removals] == [1, 2]
    assert {removal["layers"][0] for removal in removals} == {2, 3}
    before = load_lvlm(str(tmp_path / "base"))
    with torch.no_grad():
        before.load_state_dict(trained_at(tmp_path, 1), strict=False)
    batches = list(islice(iter(cli.datamodule.train_dataloader()), 2))
    table = score_layers(before, batches, [BlockInfluence()])
    measured = removals[0]["measured"]
    assert measured["values"] == pytest.approx(table.values["block_influence"], rel=1e-3)
    assert measured["data_sha256"] == [table.facts["data_sha256"]] and measured["samples"] == table.facts["samples"]
    assert measured["values"][removals[0]["layers"][0]] == min(measured["values"][2:4])
    assert removals[1]["measured"]["values"] != measured["values"]

    record, card = exported(tmp_path, config, checkpoint(tmp_path, 3))
    assert record["pruning"] == removals
    assert record["selection"] == EXPLICIT and "chosen by Explicit (layers [1, 4])" in card
    for removal in removals:
        line = f"- {removal['layers'][0]}, after {removal['step']} optimiser steps, by block_influence on 8 training"
        assert line in card and removal["measured"]["data_sha256"][0] in card


def trained_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    saved = torch.load(checkpoint(folder, step), weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in saved.items()}


def test_checkpoints_of_before_this_was_remembered_still_load(tmp_path: Path) -> None:
    config = with_callback(tuning_config(tmp_path, prune=SCORE), pruning())
    main(["fit", "--config", str(config), "--trainer.max_steps=2", "--trainer.logger=true"])
    (kept,) = tmp_path.rglob(LAYERS)
    assert json.loads(kept.read_text()) == {
        "depth": 6,
        "tuned": [1, 4],
        "removals": [{"step": 1, "layers": [2, 3], "score": "block_influence"}],
    }
    file = checkpoint(tmp_path, 2)
    saved = torch.load(file, weights_only=True)
    del saved["sparsight"]["removals"], saved["sparsight"]["selection"]
    torch.save(saved, file)
    again = main(["fit", "--config", str(config), "--ckpt_path", str(file), "--trainer.max_steps=3"])
    assert again.model.retired.indices == [2, 3] and again.model.removals == []  # not as if they had left just now
    assert again.model.selection == EXPLICIT


def test_layers_that_no_stage_tunes_may_leave_while_the_projector_heals(tmp_path: Path) -> None:
    options: dict[str, Any] = {"stages": [STAGE | {"train": ["projector"]}], "layers": None, "healing": {"hidden": 0.5}}
    config = with_callback(tuning_config(tmp_path, prune=SCORE, **options), pruning(1, begin=0, order=["layers.3"]))
    cli = main(["fit", "--config", str(config), "--trainer.max_steps=1"])
    assert cli.model.layers == [0, 3]  # a quarter, that the stage does not train
    assert cli.model.sites() == ["layers.1", "layers.2", "layers.3", "layers.4"]
    assert cli.model.removals == [{"step": 0, "layers": [3], "measured": None}]  # named, not measured
    assert cli.trainer.callback_metrics["train/hidden_difference"] > 0


def test_layers_of_a_later_stage_are_protected_from_the_first_on(tmp_path: Path) -> None:
    base, layers = save_tiny_lvlm(tmp_path / "base"), Explicit([1, 4])
    prune = LayerPruning(score=BlockInfluence())
    both = [TuningStage(1, train=["projector"]), TuningStage(1)]
    assert SparseLayerTuning(str(base), both, layers=layers, prune=prune).sites() == ["layers.2", "layers.3"]
    alone = SparseLayerTuning(str(base), both[:1], layers=layers, prune=prune)
    assert alone.sites() == ["layers.1", "layers.2", "layers.3", "layers.4"] and alone.tuned_layers == []


def test_a_record_names_no_rule_where_no_layer_was_tuned() -> None:
    known: dict[str, Any] = {"base": "base", "revision": None, "base_hash": "", "depth": 6, "earlier": None}
    known |= {"parts": ["projector"], "removed": [3], "selection": Uniform(ratio=0.25).record()}
    assert provenance(tuned=[], **known)["selection"] is None
    options = {"count": None, "ratio": 0.25, "rule": "floor", "offset": 0}
    assert provenance(tuned=[0, 3], **known)["selection"] == {"rule": "Uniform", "options": options}
