"""Adapters on routed experts, which are tensors of all experts of a layer: on two processes, recomputed, and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from sparsight.command.cli import main
from tests.tiny_processes import SHARDED, run_command
from tests.tiny_processors import family_processor
from tests.tiny_tuning import checkpoint, tuning_config

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0}
LAYER = {"class_path": "Explicit", "init_args": {"layers": [1]}}
MOMENTUM = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}  # Lightning loads no empty state


def config_of(folder: Path, **model: Any) -> Path:
    options = {"lora": LORA, "layers": LAYER, "optimizer": MOMENTUM} | model
    path = tuning_config(folder, family="qwen3_vl_moe", **options)
    family_processor("qwen3_vl_moe").save_pretrained(folder / "base")
    config = yaml.safe_load(path.read_text())
    config["trainer"]["limit_val_batches"] = 0
    path.write_text(yaml.safe_dump(config))
    return path


def trained(folder: Path, run: str) -> dict[str, Tensor]:
    state = torch.load(checkpoint(folder, 4, run=run), weights_only=True)["state_dict"]
    experts = {name: value for name, value in state.items() if ".experts." in name}
    assert len(experts) == 4 and all(float(value.abs().max()) > 0 for value in experts.values()), "all have learnt"
    return state


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The base model with its data, and what one process trains."""
    folder = tmp_path_factory.mktemp("experts")
    main(["fit", "--config", str(config_of(folder)), f"--trainer.default_root_dir={folder / 'one'}"])
    return folder, trained(folder, "one")


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_recomputed_layers_train_as_others(alone: tuple[Path, dict[str, Tensor]]) -> None:
    folder, wanted = alone
    config = config_of(folder, compute={"gradient_checkpointing": True})
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder / 'recomputed'}"])
    compare(trained(folder, "recomputed"), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", SHARDED], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one(alone: tuple[Path, dict[str, Tensor]], strategy: Any) -> None:
    folder, wanted = alone
    name = strategy if isinstance(strategy, str) else "fsdp2"
    overlay = folder / f"{name}.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"devices": 2, "strategy": strategy}}))
    run = ["--data.batch_size=2", f"--trainer.default_root_dir={folder / name}"]
    run_command(["fit", "--config", str(config_of(folder)), "--config", str(overlay), *run])
    compare(trained(folder, name), wanted)
