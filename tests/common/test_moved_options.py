"""Old options of constructors lead to the new ones: in Python, in configs, on the command line and in checkpoints."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

import datamodules
import lightning_modules
from datamodules import TeacherSamplesDataModule
from lightning_modules import AttentionDistillation
from sparsight.command.cli import main
from sparsight.common.checkpoint.run_record import check_options
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.errors import CheckpointError
from sparsight.common.moved import OPTIONS, move_options
from tests.tiny_distillation import distillation_config


@pytest.mark.parametrize("name", OPTIONS)
def test_every_old_option_leads_to_a_field_of_an_option_that_is_there(name: str) -> None:
    kind = getattr(lightning_modules, name, None) or getattr(datamodules, name)
    parameters = inspect.signature(kind).parameters
    for old, new in OPTIONS[name].items():
        group, field = new.split(".")
        assert old not in parameters and field in parameters[group].default.__dataclass_fields__


def test_python_takes_old_keywords_beside_new_ones() -> None:
    with pytest.warns(FutureWarning, match=r"cache_dir of TeacherSamplesDataModule is cache\.folder now"):
        data = TeacherSamplesDataModule("nowhere", cache_dir="here", shard_size=3, cache=CacheOptions("there", 5, None))
    assert (str(data.cache_dir), data.plan.shard_size, data.verify_days) == ("here", 3, None)


class _Own(AttentionDistillation):
    """A user's."""


def test_mappings_keep_what_is_there_and_what_other_classes_call_so() -> None:
    options = {"guidance_scale": 3.0, "sampling": {"steps": 7}, "cache_dir": "not of this class"}
    with pytest.warns(FutureWarning, match="guidance_scale"):
        move_options(_Own, options)
    assert options == {"sampling": {"steps": 7, "guidance_scale": 3.0}, "cache_dir": "not of this class"}


def test_configs_and_flags_of_old_names_are_those_of_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(distillation_config(tmp_path))
    old = tmp_path / "old.yaml"
    old.write_text("model: {init_args: {sample_steps: 3, sample_size: [8, 8]}}\n")
    with pytest.warns(FutureWarning), pytest.raises(SystemExit):
        main(["fit", "--config", path, "--config", str(old), "--model.guidance_scale", "4", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert found["sampling"] == {"steps": 3, "guidance_scale": 4.0, "size": [8, 8]}


def test_checkpoints_of_old_names_are_compared_with_the_new_ones() -> None:
    saved = {"sample_steps": 20, "sample_size": [8, 8]}
    now = {"sampling": {"steps": 25, "size": [8, 8]}}
    check_options(saved, now, class_path="lightning_modules.AttentionDistillation", source="a.ckpt")
    now["sampling"]["size"] = [4, 4]
    with pytest.raises(CheckpointError, match=r"sampling\.size\.0: 8 in the checkpoint, 4"):
        check_options(saved, now, class_path="lightning_modules.AttentionDistillation", source="a.ckpt")
