"""The ``analyze`` verb: calibration batches in, table and files out, with a small module of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from sparsight.command.cli import main
from sparsight.lvlm.scores import LayerScore, ScoreTable, score_layers
from tests.tiny_batches import Batch, batch_of, one_by_one, text_only
from tests.tiny_lvlm import tiny_lvlm


class TinyTuning(LightningModule):
    """The least that can be analysed: a model, and a method that scores it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_lvlm("llava")
        self.analysed_in: list[Any] = []

    def analyze(self, scores: Sequence[LayerScore], batches: Sequence[Batch]) -> ScoreTable:
        self.analysed_in.append((self.device, torch.is_autocast_enabled("cpu")))
        return score_layers(self.model, batches, scores, base="tiny")


class Unanalysable(LightningModule):
    """Has no decoder layers."""


class TinyData(LightningDataModule):
    """Two training batches and, without images and answers, one validation batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []
        self.batch = batch_of("llava", tiny_lvlm("llava"))

    def setup(self, stage: str) -> None:
        assert isinstance(self.trainer.lightning_module, TinyTuning)  # type: ignore[union-attr]
        self.stages.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(one_by_one(self.batch), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        only_prompts = {"inputs": text_only(self.batch)["inputs"]}
        return [DataLoader([only_prompts], batch_size=None)]  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    trainer = {"accelerator": "cpu", "default_root_dir": str(tmp_path / "runs"), "enable_progress_bar": False}
    content = {
        "trainer": {**trainer, "logger": False},
        "model": {"class_path": f"{__name__}.TinyTuning"},
        "data": {"class_path": f"{__name__}.TinyData"},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_the_default_scores_of_a_config_go_to_a_folder(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = main(["analyze", "--config", config, "--batches", "2"])
    folder = tmp_path / "runs" / "scores"
    table = ScoreTable.load(folder / "scores.json")
    names = ["block_influence", "multimodal_block_influence", "angular_distance_last", "angular_distance_all"]
    assert list(table.values) == names
    assert (table.facts["samples"], table.facts["base"], cli.datamodule.stages) == (2, "tiny", ["fit"])
    assert {path.suffix for path in folder.iterdir()} == {".json", ".csv", ".png"}
    said = capsys.readouterr().out
    assert table.text() in said and str(folder) in said


def test_scores_split_and_folder_are_chosen_in_yaml(config: str, tmp_path: Path) -> None:
    scores = [
        {"class_path": "AngularDistance", "init_args": {"tokens": "text", "window": 2}},
        {"class_path": "LayerContribution", "init_args": {"tokens": "text"}},
    ]
    below = tmp_path / "scores.yaml"
    below.write_text(yaml.safe_dump({"scores": scores, "split": "val", "batches": 1, "output": str(tmp_path / "out")}))
    cli = main(["analyze", "--config", config, "--config", str(below)])
    values = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert list(values) == ["angular_distance_text_window2", "layer_contribution_text"]
    assert cli.datamodule.stages == ["validate"]


def test_a_checkpoints_weights_are_analysed_in_the_trainers_precision(config: str, tmp_path: Path) -> None:
    other = TinyTuning()
    with torch.no_grad():
        other.model.model.language_model.layers[1].mlp.down_proj.weight.mul_(3)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "tuned.ckpt")
    results = []
    for arguments in ([], ["--ckpt_path", str(tmp_path / "tuned.ckpt")], ["--trainer.precision", "bf16-mixed"]):
        cli = main(["analyze", "--config", config, "--batches", "2", *arguments])
        results.append(ScoreTable.load(tmp_path / "runs" / "scores" / "scores.json").values["block_influence"])
        assert cli.model.analysed_in == [(torch.device("cpu"), "bf16-mixed" in arguments)]
    plain, tuned, mixed = results
    assert tuned[0] == plain[0] and abs(tuned[1] - plain[1]) > 0.01  # type: ignore[operator]
    assert mixed == pytest.approx(plain, rel=0.05)
    assert mixed != plain


def test_too_few_batches_are_said(config: str, caplog: pytest.LogCaptureFixture) -> None:
    main(["analyze", "--config", config, "--batches", "5"])
    assert "the train split has 2 batches, not 5" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", f"{__name__}.Unanalysable"], "Unanalysable has no decoder layers to analyse"),
        (["--mixers+=NoMixing"], "mixers looks at the attentions of denoisers, and TinyTuning has none"),
        (["--batches", "0"], "the train split has no batches to calibrate on, or batches is 0"),
        (["--trainer.devices", "2"], "analyze runs in one process, not 2"),
        (["--ckpt_path", "nowhere.ckpt"], "ckpt_path: 'nowhere.ckpt' does not exist"),
        (["--scores", '[{"class_path": "AngularDistance", "init_args": {"tokens": "first"}}]'], "tokens"),
        (["--split", "test"], "split"),
        (["--maps", "ImageMaps"], "TinyTuning has no images to draw maps over: leave --maps out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_readable_message(
    arguments: list[str], message: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["analyze", "--config", config, *arguments])
    assert message in capsys.readouterr().err + str(stop.value)
    assert not (tmp_path / "runs").exists()


def test_scores_that_do_not_fit_the_data_end_in_one_readable_message(config: str) -> None:
    with pytest.raises(SystemExit, match=r"^sparsight: .* needs calibration batches with labels"):
        main(["analyze", "--config", config, "--split", "val", "--scores", '[{"class_path": "LossIncrease"}]'])
