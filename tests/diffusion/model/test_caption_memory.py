"""Captions are embedded once a run, alike in every batch, and text encoders leave the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from sparsight.diffusion.families.conditioning import flatten_condition
from sparsight.diffusion.model.caption_memory import PATIENCE, CaptionMemory
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_device import FusedOnPaper, OnPaper, Waits
from tests.tiny_distillation import distillation
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_rows import few
from tests.tiny_sd3 import save_sd3_pipeline
from tests.tiny_wan import save_wan_pipeline

SAVE: dict[str, Callable[[Path], Path]] = {
    "sdxl": tiny.save_sdxl_pipeline,
    "sd": tiny.save_sd_pipeline,
    "pixart": tiny.save_pixart_pipeline,
    "pixel_unet": tiny.save_pixel_unet_pipeline,
    "sd3": save_sd3_pipeline,
    "flux": save_flux_pipeline,
    "wan": save_wan_pipeline,
}
SIZE = (16, 24)


def equal(one: Any, other: Any, **tolerance: float) -> None:
    first, second = flatten_condition(one, "c"), flatten_condition(other, "c")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance)


@pytest.mark.parametrize("family", few(list(SAVE), "sdxl"))
def test_every_caption_is_embedded_once_and_alike_in_every_batch(family: str, tmp_path: Path) -> None:
    model = DiffusionModel.from_pretrained(str(SAVE[family](tmp_path / "teacher")))
    asked: list[int] = []
    model.captions.encoders[0].register_forward_hook(lambda module, args, output: asked.append(1))
    batch = {"caption": ["a cat", "a dog", "a cat"]}
    wanted, empty = model.conditioner(batch, SIZE), model.conditioner.unconditional(3, SIZE)
    asked.clear()
    first = model.condition(batch, SIZE)
    equal(first, wanted, rtol=1e-4, atol=1e-5)
    equal(model.unconditional({}, 3, SIZE), empty, rtol=1e-4, atol=1e-5)
    count = len(asked)
    assert 0 < count <= 3
    turned = model.condition({"caption": ["a dog", "a cat"]}, SIZE)
    equal({k: v for k, v in flatten_condition(turned, "c").items()}, _rows(first, [1, 0]), rtol=0, atol=0)
    equal(model.unconditional({}, 2, SIZE), model.conditioner.unconditional(2, SIZE), rtol=0, atol=0)
    asked.clear()
    equal(model.condition(batch, SIZE), first, rtol=0, atol=0)
    assert not asked
    model.captions.room = 0
    model.condition({"caption": ["a boat"]}, SIZE)
    model.condition({"caption": ["a boat"]}, SIZE)
    assert len(asked) >= 2


def _rows(condition: Any, rows: list[int]) -> dict[str, torch.Tensor]:
    return {name: part[rows] for name, part in flatten_condition(condition, "c").items()}


class Noted(nn.Linear):
    """Says where it is sent."""

    sent: tuple[str, ...] = ()

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.sent = (*self.sent, str(device))
        return self


def test_encoders_leave_the_device_once_captions_are_known() -> None:
    device = torch.device("meta")
    encoder = Noted(1, 1, device=device)
    memory = CaptionMemory([encoder])

    def ask(*captions: str) -> None:
        memory.conditions(captions, SIZE, lambda caption: {"e": torch.ones(1, 4)}, device)

    ask("a", "b")
    for _ in range(PATIENCE - 1):
        ask("b")
    assert encoder.sent == ()
    ask("c")  # another one comes
    for _ in range(PATIENCE):
        ask("a", "c")
    assert encoder.sent == ("cpu",)
    full = CaptionMemory([encoder], room=0)
    for _ in range(2 * PATIENCE):
        full.conditions(["a"], SIZE, lambda caption: {"e": torch.ones(1, 4)}, device)
    assert encoder.sent == ("cpu",), "captions that find no room keep the encoders where they are"


class Known(LightningDataModule):
    """Samples of the captions that it tells beforehand."""

    def known_captions(self) -> list[str]:
        return ["a cat"]

    def batch_shape(self, model: DiffusionModel) -> tuple[int, ...]:
        return 2, *model.sample_shape()[1:]

    def train_dataloader(self) -> DataLoader[Any]:
        rows = [{"caption": "a cat", "sample": torch.randn(4, 8, 12), "index": number} for number in range(4)]
        return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("known", [True, False])
def test_captions_that_are_known_are_embedded_before_the_denoiser_comes(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, size = str(save_flux_pipeline(tmp_path / "flux")), (8, 12)
    module = distillation(teacher, [Stage("end_to_end", 2)], optimizer=FusedOnPaper, sampling=Sampling(2, size=size))
    moves: list[tuple[str, str]] = []
    bring = CaptionMemory._bring

    def noted(self: CaptionMemory, device: torch.device) -> None:
        if any(p.device != device for encoder in self.encoders for p in encoder.parameters()):
            moves.append((str(device), str(module.diffusion.device)))
        bring(self, device)

    monkeypatch.setattr(CaptionMemory, "_bring", noted)
    trainer = Trainer(
        strategy=OnPaper(), max_epochs=-1, limit_val_batches=0, enable_checkpointing=False, logger=False,
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    with Waits():
        trainer.fit(
            module,
            datamodule=Known() if known else None,
            train_dataloaders=None if known else Known().train_dataloader(),
        )
    assert trainer.global_step == 2
    assert moves == ([("meta", "cpu"), ("cpu", "cpu")] if known else [("meta", "meta")])
    module.optimizer = torch.optim.AdamW
    told = module.estimated_memory().standing if known else {}
    assert not known or ("vae" in told and "text_encoder_2" not in told)


def test_what_finds_no_room_is_told_and_comes_later(tmp_path: Path) -> None:
    model = DiffusionModel.from_pretrained(str(save_flux_pipeline(tmp_path / "flux")))
    model.captions.room = 1
    with Waits(), pytest.warns(UserWarning, match="not all captions find room in memory"):
        model.embed_ahead(["a cat"], (8, 12), torch.device("meta"))
    assert not model.captions._known
