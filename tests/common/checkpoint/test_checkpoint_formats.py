"""Checkpoints of the first format, which had no number, are read for as long as there are any: one of each half."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks import DeltaConvBlock
from lightning_modules import AttentionDistillation, SparseLayerTuning
from lightning_modules.base import TrainedPartsModule
from sparsight.common.checkpoint.file import verify, write_checkpoint
from sparsight.common.errors import CheckpointError
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import Stage
from sparsight.lvlm.surgery.selection import Explicit
from sparsight.lvlm.train.stages import TuningStage
from sparsight.publish.checkpoint import restore
from tests.tiny_checkpoint import stored
from tests.tiny_lvlm import save_tiny_lvlm

FIXTURES = Path(__file__).parents[2] / "fixtures"


def distillation() -> TrainedPartsModule:
    stages = [Stage(objective=objective, steps=2, warmup_steps=1) for objective in ("layerwise", "end_to_end")]
    teacher = str(FIXTURES / "format_1" / "teacher")
    return AttentionDistillation(
        teacher, lambda site: DeltaConvBlock(site, kernel_size=3), stages, sampling=Sampling(2)
    )


def tuning(folder: Path) -> TrainedPartsModule:
    save_tiny_lvlm(folder / "base", "fast_vlm")
    stage = TuningStage(steps=4, lr=0.05, lr_schedule="constant", warmup_share=0.0)
    return SparseLayerTuning(str(folder / "base"), [stage], layers=Explicit([1]))


@pytest.mark.parametrize("half", ["diffusion", "image_text"])
def test_a_checkpoint_without_a_number_is_loaded(tmp_path: Path, half: str) -> None:
    saved: dict[str, Any] = stored(FIXTURES / "format_0" / half)
    assert "format" not in saved
    if half == "diffusion":
        module = distillation()
    else:
        module = tuning(tmp_path)
        saved["sparsight"]["base_hash"] = module.base_hash  # made from a seed, by another kernel to other last bits
    torch.save(saved, tmp_path / "step=3.ckpt")
    assert verify(tmp_path / "step=3.ckpt").format == 0
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run = restore(module, tmp_path / "step=3.ckpt", weights="raw")
    assert run.steps == 3
    after = module.state_dict()
    assert after.keys() == saved["state_dict"].keys() and any(not torch.equal(before[k], v) for k, v in after.items())
    for name, value in saved["state_dict"].items():
        assert torch.equal(after[name], value), name
    if half == "diffusion":
        average = next(v for k, v in saved["callbacks"].items() if k.startswith("TrainableEMA"))["average"]
        assert restore(module, tmp_path / "step=3.ckpt", weights="ema").weights == "moving average"
        assert torch.equal(dict(module.named_parameters())[next(iter(average))], next(iter(average.values())))


def test_a_file_of_format_1_without_its_hash_is_damaged(tmp_path: Path) -> None:
    write_checkpoint(stored(FIXTURES / "format_0" / "diffusion"), tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive, zipfile.ZipFile(tmp_path / "b.ckpt", "w") as other:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("sparsight.json"):
                content = json.dumps(json.loads(content) | {"hash": ""}).encode()
            other.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"b\.ckpt is damaged"):
        verify(tmp_path / "b.ckpt")
