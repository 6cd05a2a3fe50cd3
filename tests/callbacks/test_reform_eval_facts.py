"""What a report of an evaluation says about the model and the questions, so that it can be read alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from blocks import DivPrune, LoFiT
from callbacks import ReformEvalReport
from datamodules import ReformEvalDataModule
from lightning_modules import LVLMEvaluation
from sparsight.evaluation.reform_eval.report import read_report
from tests.tiny_evaluation import GreyTask
from tests.tiny_lvlm import save_tiny_lvlm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("model") / "tiny", "llava")


def evaluated(module: LVLMEvaluation, root: Path, **data: Any) -> dict[str, Any]:
    """The report of an evaluation whose folder is named after the model."""
    callback = ReformEvalReport(resamples=100)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[callback], default_root_dir=str(root), **options)
    trainer.test(module, ReformEvalDataModule([GreyTask(count=2)], **data), verbose=False)
    (folder,) = (root / "reform_eval").iterdir()
    report = read_report(folder)
    assert folder.name.startswith(f"{report['about']['model']['name']}-")
    return report


def test_prompts_can_be_put_together_again(model: Path, tmp_path: Path) -> None:
    report = evaluated(
        LVLMEvaluation(str(model)), tmp_path, protocol={"methods": ["likelihood", "generation"], "new_tokens": 2}
    )
    assert report["suite"]["greys"]["class"] == "GreyTask" and report["suite"]["greys"]["count"] == 2
    for method in ("likelihood", "generation"):
        first = next(answer for answer in report["answers"] if answer["method"] == method)
        told = report["suite"]["greys"]["instructions"][method]
        opening = told["with_pictures" if first["pictures"] else "without_pictures"][first["instruction"]]
        prompt = report["prompts"][f"{method}/greys"]
        assert opening.replace("{form}", "(A)") in prompt
        assert first["question"] in prompt and first["question"].endswith(first["sample"] + "?")


def test_a_model_in_the_current_folder_has_that_folders_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    assert evaluated(LVLMEvaluation("."), tmp_path)["about"]["model"]["name"] == "tiny"


def test_the_revision_is_what_the_hub_resolved(model: Path, tmp_path: Path) -> None:
    """Whatever was asked for: transformers notes the commit in the configuration."""
    module = LVLMEvaluation(str(model))
    module.revision, module.model.config._commit_hash = "main", "0a1b2c"
    assert evaluated(module, tmp_path)["about"]["model"]["revision"] == "0a1b2c"


def test_what_is_answered_under_a_recipe_is_kept_apart(model: Path, tmp_path: Path) -> None:
    """By its methods and their weights; what was answered without is not taken for it."""
    found = {}
    with pytest.warns(UserWarning, match="weights that were never trained"):
        for name, recipe in (("plain", None), ("half", [DivPrune(0.5)]), ("heads", [LoFiT(count=3)])):
            evaluated(LVLMEvaluation(str(model), recipe=recipe), tmp_path / name)
            (folder,) = (tmp_path / name / "reform_eval").iterdir()
            found[name] = folder.name, read_report(folder)["about"]["model"]
    assert len({folder for folder, _ in found.values()}) == 3
    assert "recipe" not in found["plain"][1] and "recipe_weights" not in found["half"][1]
    assert found["half"][1]["recipe"] == [DivPrune(0.5).record()] and found["heads"][1]["recipe_weights"]
