"""Training denoisers: what is trained, what is refused, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from lightning.pytorch import Trainer

from callbacks import TrainableEMA
from lightning_modules import DenoiserTraining
from lightning_modules.denoiser_training import Conditions
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import predict
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
        pytest.param(DDPMScheduler(prediction_type="epsilon"), marks=pytest.mark.slow),
        DDPMScheduler(prediction_type="v_prediction"),
        pytest.param(FlowMatchEulerDiscreteScheduler(), marks=pytest.mark.slow),
    ],
    ids=["epsilon", "v", "flow"],
)
def test_the_loss_goes_down(tmp_path: Path, scheduler: object) -> None:
    module = DenoiserTraining(
        denoiser=tiny.dit(),
        noise_scheduler=scheduler,
        noise={"snr_gamma": 5.0},
        schedule={"warmup_steps": 1},
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
    )
    data = tiny.image_data(tmp_path, batch_size=8)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        before = float(module._loss(module.noised(batch, step=0, condition_dropout=0.0)))
    trainer(tmp_path, max_steps=40).fit(module, data)
    with torch.no_grad():
        after = float(module._loss(module.noised(batch, step=0, condition_dropout=0.0)))
    assert after < 0.9 * before


def test_patterns_choose_what_is_trained_and_saved(tmp_path: Path) -> None:
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    module = DenoiserTraining(pretrained=str(teacher), trainable=["*.attn1.*"], schedule={"warmup_steps": 1})
    before = {n: p.clone() for n, p in module.named_parameters()}
    trainer(tmp_path, max_steps=2).fit(module, tiny.image_data(tmp_path))
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".attn1." in name for name in changed)
    assert set(module.state_dict()) == {n for n in before if ".attn1." in n}
    with pytest.raises(ValueError, match="nothing_like_this"):
        DenoiserTraining(pretrained=str(teacher), trainable=["nothing_like_this"])
    with pytest.raises(ValueError, match="both denoiser and noise_scheduler"):
        DenoiserTraining(denoiser=tiny.dit())


def test_parts_that_do_not_make_a_pipeline_are_refused(tmp_path: Path) -> None:
    encoder = str(tiny.save_text_encoder(tmp_path / "encoder"))
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    captions = Conditions(text_encoder=encoder, text_tokens=12)
    parts: dict[str, Any]
    for parts, message in (
        ({"denoiser": tiny.unet()}, "needs captions: give text_encoder"),
        ({"denoiser": tiny.unet(), "conditions": Conditions(["a"], encoder)}, "class_names is for a DiT"),
        ({"denoiser": tiny.unet(cross_attention_dim=16), "conditions": captions}, "is 16: make it 32"),
        ({"denoiser": tiny.unet(), "conditions": replace(captions, text_tokens=13)}, "text_tokens is 13; .* 3 to 12"),
        ({"denoiser": tiny.dit(), "conditions": captions}, "text_encoder is for denoisers of captions"),
        ({"denoiser": tiny.pixart()}, "a PixArtTransformer2DModel cannot be trained from nothing"),
        ({"pretrained": teacher, "conditions": captions}, "are those of the pretrained pipeline"),
    ):
        with pytest.raises(ValueError, match=message):
            DenoiserTraining(**{"noise_scheduler": DDPMScheduler()} | parts)
    with pytest.raises(FileNotFoundError, match="nowhere' is neither a folder"):
        conditions = Conditions(text_encoder=str(tmp_path / "nowhere"))
        DenoiserTraining(denoiser=tiny.unet(), noise_scheduler=DDPMScheduler(), conditions=conditions)


@pytest.mark.slow
def test_a_fresh_unet_learns_captions_beside_a_frozen_text_encoder(tmp_path: Path) -> None:
    """Flat images whose brightness only the caption tells: it must be used, and nothing but the U-Net may change."""
    module = DenoiserTraining(
        denoiser=tiny.unet(in_channels=3, out_channels=3, sample_size=8),
        noise_scheduler=DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"),
        conditions=Conditions(text_encoder=str(tiny.save_text_encoder(tmp_path / "encoder")), text_tokens=8),
        schedule={"warmup_steps": 1},
        condition_dropout=0.0,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    encoder = module.diffusion.pipeline.text_encoder
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    assert set(module.state_dict()) == {f"denoiser.{name}" for name, _ in module.denoiser.named_parameters()}
    caption = ["dark", "bright"] * 8
    image = torch.tensor([-1.0, 1.0] * 8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    batch = {"image": image, "caption": caption, "index": torch.arange(16)}
    assert torch.equal(torch.zeros(16, 3, 8, 8), predict(module.denoiser, **question(module, batch))), "starts closed"
    trainer(tmp_path, max_steps=40).fit(module, torch.utils.data.DataLoader([batch] * 40, batch_size=None))
    assert all(torch.equal(p, before[name]) and not p.requires_grad for name, p in encoder.named_parameters())
    with torch.no_grad():
        right = float(module._loss(module.noised(batch, step=0, condition_dropout=0.0)))
        other = batch | {"caption": caption[::-1]}
        wrong = float(module._loss(module.noised(other, step=0, condition_dropout=0.0)))
    assert right < 0.85 * wrong


def question(module: DenoiserTraining, batch: dict[str, Any]) -> dict[str, Any]:
    noised = module.noised(batch, step=0, condition_dropout=0.0)
    return {"sample": noised["xt"], "timestep": noised["timestep"], "cond": noised["cond"]}


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    attention = DenoiserTraining(pretrained=teacher, trainable=["*.attn1.*"])
    everything = DenoiserTraining(pretrained=teacher)
    with pytest.raises(ValueError, match="does not fit this module"):
        everything.load_state_dict(attention.state_dict())


def test_the_average_is_evaluated_and_kept(tmp_path: Path) -> None:
    module = DenoiserTraining(denoiser=tiny.dit(), noise_scheduler=DDPMScheduler(), schedule={"warmup_steps": 1})
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
        optimizers = (torch.optim.SGD(layer.parameters(), 1.0),)

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


def test_another_length_of_a_schedule_is_said(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A cosine is stretched; a constant rate has no length."""
    for schedule, told in (("cosine", True), ("constant", False)):
        options: dict[str, Any] = {"schedule": {"name": schedule, "warmup_steps": 0}}
        parts = {"denoiser": tiny.dit(), "noise_scheduler": DDPMScheduler()}
        saving = trainer(tmp_path, max_steps=2)
        saving.fit(DenoiserTraining(**parts, **options), tiny.image_data(tmp_path))
        saving.save_checkpoint(tmp_path / f"{schedule}.ckpt")
        for steps in (2, 3):
            recwarn.clear()
            trainer(tmp_path, max_steps=steps).fit(
                DenoiserTraining(**parts, **options),
                tiny.image_data(tmp_path),
                ckpt_path=tmp_path / f"{schedule}.ckpt",
                weights_only=True,
            )
            said = any("that of the checkpoint was 2: the cosine" in str(warning.message) for warning in recwarn)
            assert said == (told and steps == 3)


def test_a_rate_of_nothing_is_refused(tmp_path: Path) -> None:
    module = DenoiserTraining(
        denoiser=tiny.dit(), noise_scheduler=DDPMScheduler(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0)
    )
    with pytest.raises(ConfigurationError, match=r"lr of model\.optimizer is 0"):
        trainer(tmp_path, max_steps=1).fit(module, tiny.image_data(tmp_path))


def test_training_without_an_end_is_refused(tmp_path: Path) -> None:
    module = DenoiserTraining(denoiser=tiny.dit(), noise_scheduler=DDPMScheduler())
    with pytest.raises(ConfigurationError, match=r"trainer\.max_steps is not given"):
        trainer(tmp_path, max_epochs=-1).fit(module, tiny.image_data(tmp_path))
