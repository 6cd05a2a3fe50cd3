"""What cards tell of the training: rates of every stage, and nothing of the machine's folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from diffusers import DDIMScheduler, DiTPipeline

from sparsight.common.training.stage_clock import StageClock
from sparsight.diffusion.export.card import Model, write_card
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import learns_variance
from sparsight.diffusion.pipelines.pixel_pipeline import PixelDiTPipeline
from sparsight.diffusion.train.stages import Stage
from sparsight.lvlm.train.stages import TuningStage
from sparsight.publish.card import training_text
from sparsight.publish.checkpoint import stages_of
from sparsight.publish.facts import Run, StageFacts
from sparsight.publish.shared_config import shared_config
from tests import tiny

CONFIG = {
    "trainer": {"default_root_dir": "/home/somebody/runs", "devices": 1},
    "model": {"init_args": {"base": "~/models/base", "layers": None, "lr": 0.1}},
    "data": {
        "init_args": {
            "train": {"sources": [{"file": "/home/somebody/talks/train.jsonl", "images": "C:\\Users\\me\\pictures\\"}]},
            "val": {"file": "data/val.jsonl"},
            "model": "some/model",
            "question": "/no_think What is this?",
        }
    },
}


def test_a_stage_is_told_with_the_rates_of_what_it_trains() -> None:
    stages = [
        TuningStage(5, train=["projector"], lr=1e-4, projector_lr=1e-3, lr_schedule="constant"),
        TuningStage(7, lr=2e-5, projector_lr=1e-3),
        TuningStage(9, lr=2e-5),
    ]
    tuned = SimpleNamespace(clock=StageClock(stages))
    text = training_text(Run(stages=stages_of(tuned, 21)))
    assert "| stage | steps | learning rate |" in text
    assert "| projector | 5 | 0.001, constant |" in text
    assert "| layers and projector | 7 | layers 2e-05, projector 0.001, cosine |" in text
    assert "| layers and projector | 9 | 2e-05, cosine |" in text
    distilled = SimpleNamespace(clock=StageClock([Stage("layerwise", 3, lr=3e-4)]))
    assert stages_of(distilled, 3) == [StageFacts("layerwise", 3, 3, "0.0003, constant_with_warmup")]
    assert stages_of(SimpleNamespace(), 3) == []


@pytest.mark.parametrize(
    ("steps", "told"),
    [(1, ["1 of 5, not finished"]), (5, ["5"]), (6, ["5", "1 of 7, not finished"]), (12, ["5", "7"]), (99, ["5", "7"])],
)
def test_only_what_was_done_of_the_stages_is_told(steps: int, told: list[str]) -> None:
    clock = StageClock([Stage("layerwise", 5), Stage("end_to_end", 7)])
    text = training_text(Run(steps=steps, stages=stages_of(SimpleNamespace(clock=clock), steps)))
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith(("| layer", "| end"))]
    assert rows == told and f"Optimiser steps taken: {steps}" in text


def test_neither_card_nor_configuration_tells_the_machines_folders() -> None:
    config = yaml.safe_dump(CONFIG)
    kept = yaml.safe_load(shared_config(config))
    assert kept["trainer"] == {"devices": 1}
    assert kept["model"]["init_args"] == {"base": "base", "layers": None, "lr": 0.1}
    options = kept["data"]["init_args"]
    assert options["train"] == {"sources": [{"file": "train.jsonl", "images": "pictures"}]}
    assert options["val"] == {"file": "data/val.jsonl"} and options["model"] == "some/model"
    assert options["question"] == "/no_think What is this?"
    text = training_text(Run(config=config))
    assert "file: train.jsonl" in text and "somebody" not in text and "Users" not in text


@pytest.mark.parametrize(("family", "learned"), [("pixart", True), ("dit", False), ("unet", False)])
def test_a_learned_variance_is_told_as_not_trained(family: str, learned: bool, tmp_path: Path) -> None:
    denoiser = tiny.FAMILIES[family]()
    assert learns_variance(denoiser) == learned
    facts: dict[str, Any] = {
        "licence": {},
        "sites": {},
        "reloaded": {"pipeline": 0.0},
        "all_sites": 2,
        "parameters": (1, 1),
        "example_call": "",
    }
    flags = {"class_conditional": False, "pipeline_code": False, "fp16": False, "delta": False}
    model = Model(
        "name", type(denoiser).__name__, "transformer", (8, 8), (8, 8), **facts, **flags, learned_variance=learned
    )
    write_card(tmp_path, model=model, run=Run(), base=None)
    assert ("learned variance, which training did not look at" in (tmp_path / "README.md").read_text()) == learned


def test_the_card_draws_classes_that_there_are_as_the_pipeline_can() -> None:
    """Diffusers' DiTPipeline takes label 1000 for no class, which a model of fewer classes does not have."""
    few, many = tiny.dit(num_embeds_ada_norm=3), tiny.dit(num_embeds_ada_norm=1000)
    told = [family_of(each).example_call(DiTPipeline(each, None, DDIMScheduler())) for each in (few, many)]
    assert told == ["class_labels=[0, 1, 2], guidance_scale=1.0", "class_labels=[0, 1, 2, 3]"]
    own = PixelDiTPipeline(few, DDIMScheduler())
    assert family_of(few).example_call(own) == "class_labels=[0, 1, 2]"
