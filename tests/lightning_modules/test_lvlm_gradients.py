"""Gradients of tuning reach all that is tuned and nothing else: one backward pass shows it, without a trainer."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_modules import SparseLayerTuning
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.surgery.selection import Explicit
from sparsight.lvlm.train.compute import TuningCompute
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import Part
from tests.tiny_batches import labels_of
from tests.tiny_lvlm import save_tiny_lvlm, tiny_inputs
from tests.tiny_rows import few


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "fast_vlm"))


def gradients(base: str, train: list[Part], *, lora: LoRA | None, checkpointing: bool) -> dict[str, Tensor | None]:
    """By name of the parameter, after one training step of a module in training mode."""
    torch.manual_seed(0)
    module = SparseLayerTuning(
        base,
        [TuningStage(1, train=train)],
        layers=Explicit([1, 4]),
        lora=lora,
        compute=TuningCompute(gradient_checkpointing=checkpointing),
    ).train()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:  # zero at first, which hides the gradient of the other half
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = tiny_inputs("fast_vlm", module.model)
    batch = {
        "inputs": inputs,
        "labels": labels_of(inputs),
        "image_keys": [["first"], ["second"]],
        "index": torch.arange(2),
    }
    module.training_step(batch, 0).backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert {name for name, value in found.items() if value is not None} == module.trained_names()
    return found


PARTS: list[list[Part]] = [["layers"], ["projector"], ["layers", "projector"]]
ADAPTERS = LoRA(rank=2, alpha=4, dropout=0.0)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize(
    ("train", "lora"), few(itertools.product(PARTS, [None, ADAPTERS]), (PARTS[2], None), (PARTS[0], ADAPTERS))
)
def test_gradients_flow_in_every_combination(base: str, train: list[Part], lora: LoRA | None) -> None:
    plain = gradients(base, train, lora=lora, checkpointing=False)
    reached = {name: value for name, value in plain.items() if value is not None}
    assert all(value.norm() > 0 for value in reached.values())
    assert any("lora" in name for name in reached) == (lora is not None and "layers" in train)
    assert any("projector" in name for name in reached) == ("projector" in train)
    layers = {name.split(".layers.")[1].split(".")[0] for name in reached if ".layers." in name}
    assert layers == ({"1", "4"} if "layers" in train else set())
    recomputed = gradients(base, train, lora=lora, checkpointing=True)
    for name, value in reached.items():
        torch.testing.assert_close(recomputed[name], value)
