"""The schema that editors use takes every shipped config and marks what the command would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from lightning.pytorch.core.optimizer import LightningOptimizer

from sparsight.command.output.schema import main
from sparsight.common.disk.yaml_files import read_yaml

pytestmark = pytest.mark.slow  # a hundred classes and their options are described


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Draft202012Validator:
    file = tmp_path_factory.mktemp("schema") / "a.json"
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    run = LightningOptimizer(optimizer)  # of a class that no path leads to, as a run in this process leaves
    main(["--output", str(file)])
    assert type(run).__name__ == "LightningSGD"
    content = json.loads(file.read_text())
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)


@pytest.mark.parametrize("config", sorted(Path("configs").rglob("*.yaml")), ids=str)
def test_shipped_configs_are_valid(schema: Draft202012Validator, config: Path) -> None:
    assert not [error.message for error in schema.iter_errors(read_yaml(config))]


MIXER = {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3}}
WRONG: list[dict[str, Any]] = [
    {"trainer": {"max_step": 3}},
    {"trainer": {"max_steps": "many"}},
    {"modell": {}},
    {"model": {"class_path": "AttentionDistillation", "init_args": {"teachr": "a"}}},
    {"model": {"class_path": "AttentionDistillation", "init_args": {"mixer": MIXER | {"init_args": {"kernel": 3}}}}},
    {"data": {"class_path": "ImageDataModule", "init_args": {"train": {"class_path": "FolderRecord"}}}},
    {"trainer": {"callbacks": [{"class_path": "callbacks.SampleGrid", "init_args": {"every_n_steps": "often"}}]}},
]


@pytest.mark.parametrize("config", WRONG, ids=str)
def test_mistakes_are_marked(schema: Draft202012Validator, config: dict[str, Any]) -> None:
    assert list(schema.iter_errors(config))


def test_classes_go_by_their_own_name_or_their_path(schema: Draft202012Validator) -> None:
    for name in ("AttentionDistillation", "lightning_modules.AttentionDistillation"):
        schema.validate({"model": {"class_path": name, "init_args": {"teacher": "a", "mixer": MIXER}}})
    schema.validate(
        {"include": ["shared/standard"], "trainer": {"callbacks+": [{"class_path": "callbacks.TrainableEMA"}]}}
    )
