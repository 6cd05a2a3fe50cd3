"""ViCrop while a model answers the items of validations and suites, by likelihood and in writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks import ReformEvalReport
from datamodules import InstructionDataModule, ReformEvalDataModule
from datamodules.evaluation.protocol_options import ProtocolOptions
from lightning_modules import LVLMEvaluation
from lightning_modules.answering import Evaluation
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.reform_eval.report import read_report
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.answer.vicrop import ViCrop
from sparsight.lvlm.answer.write import write_answers
from sparsight.lvlm.model.processor import load_processor
from tests.tiny_evaluation import BOTH, GreyTask
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_tuning import tuning_config

CROP = {"layer": 3, "side": 6, "ratios": [1.0, 1.5]}
NEW = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "llava")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(base)
    return tmp_path


def validated(folder: Path, vicrop: dict[str, Any] | None) -> tuple[dict[int, Any], Any]:
    """What ``sparsight validate`` answers to each item, and its data."""
    content = yaml.safe_load(tuning_config(folder).read_text())
    del content["trainer"]["val_check_interval"]
    content["trainer"]["default_root_dir"] = str(folder / ("crop" if vicrop else "plain"))
    asked = {"base": str(folder / "base"), "evaluation": {"new_tokens": NEW, "vicrop": vicrop}}
    content["model"] = {"class_path": "LVLMEvaluation", "init_args": asked}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    data = main(["validate", "--config", str(folder / "config.yaml")]).datamodule
    (found,) = Path(content["trainer"]["default_root_dir"]).rglob("scores_val.json")
    return {item["index"]: item for item in json.loads(found.read_text())["items"]}, data


def test_a_validation_shows_the_part_that_a_question_is_about(folder: Path, base: Path) -> None:
    """As by hand, one after the other; questions without an image are what they were."""
    (plain, _), (cropped, data) = validated(folder, None), validated(folder, CROP)
    module, processor = LVLMEvaluation(str(base)), load_processor(str(base))
    seen = 0
    for index, item in cropped.items():
        if not item["visual"]:
            assert item["log_likelihood"] == pytest.approx(plain[index]["log_likelihood"], abs=1e-4)
            continue
        talk = data.datasets["val"].source[index].conversation
        question = talk.turns[0].text.replace("<image>", "")
        inputs, _ = ViCrop(**CROP).inputs(module.model, processor, talk.images[0].convert("RGB"), question)
        ids = data.chat.encode_question(talk).continuations
        ((*logs,),) = candidate_log_likelihoods(module.model, inputs, [ids])
        assert item["log_likelihood"] == pytest.approx(logs[item["answer"]], abs=1e-3)
        (said,) = write_answers(module.model, processor.tokenizer, inputs, new_tokens=NEW)
        assert item["generated"] == said.parts().answer
        assert abs(item["log_likelihood"] - plain[index]["log_likelihood"]) > 1e-4
        seen += 1
    assert seen == 6


def suite(base: Path, folder: Path, vicrop: ViCrop | None, **options: Any) -> dict[str, Any]:
    """The only report of a suite in which one task has no images."""
    tasks = [GreyTask(count=3), GreyTask("facts", "text_only", count=2, pictures=False)]
    plain: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[ReformEvalReport(resamples=100)], default_root_dir=str(folder), **plain)
    module = LVLMEvaluation(str(base), evaluation=Evaluation(vicrop=vicrop))
    trainer.test(
        module, ReformEvalDataModule(tasks, batch_size=2, protocol=ProtocolOptions(**BOTH), **options), verbose=False
    )
    return {place.name: read_report(place) for place in (folder / "reform_eval").iterdir()}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_suite_is_asked_so_and_keeps_its_answers_apart(base: Path, tmp_path: Path, workers: int) -> None:
    """By both methods, also where batches come from another process."""
    (plain,) = suite(base, tmp_path, None).values()
    both = suite(base, tmp_path, ViCrop(layer=3, side=6), num_workers=workers)
    assert len(both) == 2  # a folder of its own: nothing that was answered without is taken for this
    (cropped,) = (report for report in both.values() if "vicrop" in report["about"]["model"])
    assert cropped["about"]["model"]["vicrop"]["layer"] == 3 and cropped["complete"]
    for before, after in zip(plain["answers"], cropped["answers"], strict=True):
        assert (before["task"], before["method"]) == (after["task"], after["method"])
        if before["method"] == "likelihood":
            same = after["log_likelihoods"] == pytest.approx(before["log_likelihoods"], abs=1e-4)
            assert same == (before["task"] == "facts")


class Others(LightningDataModule):
    """Data that cannot put a question anew."""

    def val_dataloader(self) -> list[Any]:
        return [{}]


def test_what_cannot_be_asked_so_is_refused_before_anything_is_asked(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ViCropLook is about none of the 6 layers"):
        LVLMEvaluation(str(base), evaluation=Evaluation(vicrop=ViCrop(layer=14)))
    module = LVLMEvaluation(str(base), evaluation=Evaluation(vicrop=ViCrop(layer=3)))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"evaluation\.vicrop .* which Others cannot put anew"):
        trainer.validate(module, Others(), verbose=False)
    split = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    module.trainer = Trainer(accelerator="cpu", strategy=split, logger=False)
    module.trainer.datamodule = InstructionDataModule(str(base))  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"evaluation\.vicrop .* ModelParallelStrategy"):
        module.setup("validate")
