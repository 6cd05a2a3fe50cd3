"""Training denoisers: what is trained, what is refused, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from lightning.pytorch import Trainer

from callbacks import TrainableEMA
from lightning_modules import DenoiserTraining
from tests import tiny


def trainer(folder: Path, **options: object) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(prediction_type="epsilon"),
        DDPMScheduler(prediction_type="v_prediction"),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=["epsilon", "v", "flow"],
)
def test_the_loss_goes_down(tmp_path: Path, scheduler: object) -> None:
    module = DenoiserTraining(
        denoiser=tiny.dit(),
        noise_scheduler=scheduler,
        snr_gamma=5.0,
        warmup_steps=1,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
    )
    data = tiny.image_data(tmp_path, batch_size=8)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        before = float(module._loss(batch, step=0, condition_dropout=0.0))
    trainer(tmp_path, max_steps=40).fit(module, data)
    with torch.no_grad():
        after = float(module._loss(batch, step=0, condition_dropout=0.0))
    assert after < 0.9 * before


def test_patterns_choose_what_is_trained_and_saved(tmp_path: Path) -> None:
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    module = DenoiserTraining(pretrained=str(teacher), trainable=["*.attn1.*"], warmup_steps=1)
    before = {n: p.clone() for n, p in module.named_parameters()}
    trainer(tmp_path, max_steps=2).fit(module, tiny.image_data(tmp_path))
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".attn1." in name for name in changed)
    assert set(module.state_dict()) == {n for n in before if ".attn1." in n}
    with pytest.raises(ValueError, match="nothing_like_this"):
        DenoiserTraining(pretrained=str(teacher), trainable=["nothing_like_this"])
    with pytest.raises(ValueError, match="both denoiser and noise_scheduler"):
        DenoiserTraining(denoiser=tiny.dit())
    with pytest.raises(ValueError, match="needs text encoders"):
        DenoiserTraining(denoiser=tiny.unet(), noise_scheduler=DDPMScheduler())


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    attention = DenoiserTraining(pretrained=teacher, trainable=["*.attn1.*"])
    everything = DenoiserTraining(pretrained=teacher)
    with pytest.raises(ValueError, match="does not fit this module"):
        everything.load_state_dict(attention.state_dict())


def test_the_average_is_evaluated_and_kept(tmp_path: Path) -> None:
    module = DenoiserTraining(denoiser=tiny.dit(), noise_scheduler=DDPMScheduler(), warmup_steps=1)
    ema = TrainableEMA(0.5)
    fit = trainer(tmp_path, max_steps=4, callbacks=[ema])
    fit.fit(module, tiny.image_data(tmp_path))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), ema.average[name])
    raw = {n: p.clone() for n, p in module.named_parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    with ema.averaged(module):
        assert all(torch.equal(p, raw[n]) for n, p in module.named_parameters())
    assert all(torch.allclose(p, raw[n] + 1) for n, p in module.named_parameters())


def test_ema_follows_its_formula(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    ema = TrainableEMA(0.9)

    class Clock:
        global_step = 0

    ema.on_train_start(Clock, layer)  # type: ignore[arg-type]
    expected = 0.0
    for step in range(1, 5):
        Clock.global_step = step
        torch.nn.init.constant_(layer.weight, float(step))
        ema.on_train_batch_end(Clock, layer, None, None, 0)  # type: ignore[arg-type]
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
    assert float(ema.average["weight"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="below 1"):
        TrainableEMA(1.0)
