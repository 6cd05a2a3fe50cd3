"""What was saved while core mixers stood beside copies of an attention is read, and goes on as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch.distributed import checkpoint as parts

from callbacks import TrainableEMA
from sparsight.common.checkpoint.former import rename_parts
from sparsight.diffusion.export.delta import mount
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.students.load import load_student
from sparsight.diffusion.surgery.replace import finalize
from sparsight.publish.checkpoint import restore
from tests import tiny
from tests.tiny_checkpoint import stored
from tests.tiny_core_run import distillation

FIXTURES = Path(__file__).parents[2] / "fixtures"
TEACHER, BEFORE = str(FIXTURES / "format_1" / "teacher"), FIXTURES / "before_core_sites"


@torch.no_grad()
def answer(denoiser: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return denoiser(**example_inputs(denoiser, batch=2), return_dict=False)[0]


def exported() -> dict[str, torch.Tensor]:
    return load_file(BEFORE / "student" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(stored(BEFORE / "checkpoint"), tmp_path / "step=3.ckpt")
    return tmp_path / "step=3.ckpt"


def test_a_run_goes_on_in_the_middle_of_a_stage_as_it_did(tmp_path: Path, checkpoint: Path) -> None:
    module = distillation(TEACHER)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[TrainableEMA(0.5)],
    )
    trainer.fit(module, tiny.image_data(tmp_path), ckpt_path=checkpoint)
    # a module is left with its average, which the export holds
    wanted = exported()
    finalize(module.denoiser)
    for name, value in module.denoiser.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_weights_and_averages_of_a_checkpoint_are_found(checkpoint: Path) -> None:
    saved = stored(BEFORE / "checkpoint")
    average = next(v for k, v in saved["callbacks"].items() if k.startswith("TrainableEMA"))["average"]
    for weights, held in (("raw", saved["state_dict"]), ("ema", average)):
        module = distillation(TEACHER)
        restore(module, checkpoint, weights=weights)  # type: ignore[arg-type]
        finalize(module.denoiser)
        state = module.denoiser.state_dict()
        for name, value in held.items():
            assert torch.equal(state[name.removeprefix("denoiser.").replace(".student.", ".")], value), (weights, name)


def test_names_of_a_checkpoint_in_parts_are_followed(tmp_path: Path) -> None:
    module, saved = distillation(TEACHER), stored(BEFORE / "checkpoint")
    whole = {"state_dict": saved["state_dict"]}
    numbered = dict(enumerate(saved["state_dict"]))  # as the optimiser counts them
    (optimizer,) = saved["optimizer_states"]
    whole["optimizer_0"] = {"state": {numbered[n]: state for n, state in optimizer["state"].items()}}
    parts.save(whole, checkpoint_id=tmp_path / "parts", no_dist=True)
    torch.save({"global_step": 3}, tmp_path / "parts" / "meta.pt")
    assert rename_parts(tmp_path / "parts", tmp_path / "twin", module.former_names())
    assert (tmp_path / "twin" / "meta.pt").is_file()
    trained = {name: torch.empty_like(tensor) for name, tensor in module.state_dict().items()}
    asked = {
        "state_dict": trained,
        "optimizer_0": {"state": {name: {"exp_avg": torch.empty_like(t)} for name, t in trained.items()}},
    }
    parts.load(asked, checkpoint_id=tmp_path / "twin", no_dist=True)
    module.follow_names(saved)
    for name, value in saved["state_dict"].items():
        assert torch.equal(trained[name], value), name
    (followed,) = saved["optimizer_states"]
    for number, name in zip(followed["param_groups"][0]["params"], module.state_dict(), strict=True):
        assert torch.equal(asked["optimizer_0"]["state"][name]["exp_avg"], followed["state"][number]["exp_avg"]), name
    assert not rename_parts(tmp_path / "twin", tmp_path / "none", module.former_names())
    assert not (tmp_path / "none").exists()


def test_exports_and_deltas_are_read() -> None:
    student = load_student(BEFORE / "student" / "transformer", trust_remote_code=True)
    for name, value in exported().items():
        assert torch.equal(student.state_dict()[name], value), name
    mounted = DiffusionModel.from_pretrained(TEACHER).denoiser
    before = answer(mounted)
    mount(mounted, BEFORE / "student" / "delta", trust_remote_code=True)
    torch.testing.assert_close(answer(mounted), answer(student))
    assert not torch.allclose(answer(mounted), before)
