"""Losses by kernels of other packages give what the plain one gives, and are refused where they could not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_modules import SparseLayerTuning
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.answer_losses import IGNORED, answer_losses
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.train import fused_loss
from sparsight.lvlm.train.compute import TuningCompute
from sparsight.lvlm.train.fused_loss import FusedLoss
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_extras import needs
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm
from tests.tiny_tuning import tuning_config

FUSED = [
    pytest.param("liger", marks=[needs("liger_kernel"), pytest.mark.slow]),
    pytest.param("cut_cross_entropy", marks=[needs("cut_cross_entropy"), pytest.mark.slow]),  # compiles
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages were: of these tests no kernel is called."""
    monkeypatch.setattr(fused_loss, "find_spec", lambda name: name)


@pytest.mark.parametrize("kind", FUSED)
def test_sum_and_gradients_are_those_of_the_plain_loss(kind: Any) -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    labels = torch.where(inputs["input_ids"] % 3 == 0, inputs["input_ids"], IGNORED)
    model.requires_grad_(False)
    learning = [*model.model.language_model.layers[4].parameters()]
    for parameter in learning:
        parameter.requires_grad_()
    plain = answer_losses(model, inputs, labels)[0]
    expected = torch.autograd.grad(0.3 * plain.sum(), learning)
    total, count = FusedLoss(kind).total(model, inputs, labels)
    assert count == len(plain) > 5
    torch.testing.assert_close(total, plain.sum(), rtol=1e-5, atol=1e-4)
    for found, wanted in zip(torch.autograd.grad(0.3 * total, learning), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", FUSED)
def test_a_run_trains_by_it_as_without_it(kind: str, tmp_path: Path) -> None:
    plain = main(["fit", "--config", str(tuning_config(tmp_path))]).model.model.state_dict()
    begin = load_lvlm(str(tmp_path / "base")).state_dict()
    fused = main(
        ["fit", "--config", str(tuning_config(tmp_path, compute={"fused_loss": kind}))]
    ).model.model.state_dict()
    moved = [name for name, value in plain.items() if not torch.equal(value, begin[name])]
    assert len(moved) > 10
    for name in moved:
        torch.testing.assert_close(fused[name], plain[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind, package", [("liger", "liger-kernel"), ("cut_cross_entropy", "cut-cross-entropy")])
def test_a_missing_package_is_named_with_its_command(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fused_loss, "find_spec", lambda name: None)
    asked = rf"fused_loss: {kind} needs {package}, .*: pip install 'sparsight\[fused\]' \(or {package}\), or set"
    with pytest.raises(ConfigurationError, match=asked):
        FusedLoss(kind)


@pytest.mark.usefixtures("installed")
def test_without_a_gpu_it_is_refused_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    with pytest.raises(ConfigurationError, match=r"liger runs on a GPU, and this run trains on cpu: set it to null"):
        FusedLoss("liger").check_place(trainer)
    with pytest.warns(UserWarning, match="its form in compiled torch steps in, which holds all logits"):
        FusedLoss("cut_cross_entropy").check_place(trainer)


@pytest.mark.usefixtures("installed")
def test_heads_and_logits_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fused = tiny_lvlm("llava"), FusedLoss("liger")
    monkeypatch.setattr(fused, "_sum", lambda states, weight, following: torch.tensor(1.0))
    with pytest.raises(ConfigurationError, match=r"gives a loss of 1 where the model's own is \d"):
        fused.check_model(model)
    capped = model.register_forward_hook(lambda _, args, output: output | {"logits": output.logits.tanh()})
    with pytest.raises(ConfigurationError, match="what LlavaForConditionalGeneration does with its logits"):
        fused.check_model(model)
    capped.remove()
    model.lm_head = torch.nn.Linear(32, len(model.lm_head.weight))
    with pytest.raises(ConfigurationError, match=r"LlavaForConditionalGeneration is Linear\(.*bias=True\)"):
        fused.check_model(model)


@pytest.mark.parametrize(
    "options, what", [({"healing": {"logits": 1.0}}, r"healing\.logits"), ({"recipe": ["FastV"]}, "a recipe")]
)
def test_logits_that_are_needed_are_not_left_out(options: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"fused_loss makes no logits, which {what} needs"):
        SparseLayerTuning(str(tmp_path), [TuningStage(steps=1)], compute=TuningCompute(fused_loss="liger"), **options)
