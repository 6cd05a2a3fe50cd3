"""What stands around the layers of a denoiser: fused projections are left out of exports, all else is refused first."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn.utils.parametrizations import weight_norm

from blocks import DeltaConvBlock, SoftmaxAttention
from lightning_modules import AttentionDistillation
from sparsight.diffusion.export.delta import changed_tensors, write_delta
from sparsight.diffusion.export.standalone import standalone
from sparsight.diffusion.surgery.replace import finalize, replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.train.stages import Stage
from sparsight.publish.export import rehearse
from tests import tiny
from tests.tiny import run
from tests.tiny_mixers import Blend

SIZE = (16, 16)
PATH = "mid_block.attentions.0.transformer_blocks.0.attn1"
TARGETS = {"core": "attn1.to_q", "beside": "attn2.to_k", "feed forward": "ff.net.2"}


def adapted(denoiser: Any, *targets: str) -> Any:
    torch.manual_seed(3)
    denoiser.add_adapter(LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False))
    return denoiser


def student(denoiser: Any = None, mixer: Any = Blend, **options: bool) -> Any:
    denoiser = denoiser or tiny.unet().eval()
    torch.manual_seed(5)
    set_mode(replace(denoiser, mixer, **options).values(), Mode.STUDENT)
    return denoiser


@pytest.mark.parametrize("when", ["before", "after", "both", "undone"])
def test_fused_projections_are_left_out(when: str, tmp_path: Path) -> None:
    unet = tiny.unet().eval()
    if when in ("before", "both"):
        unet.fuse_qkv_projections()
    denoiser = student(unet)
    if when != "before":
        denoiser.fuse_qkv_projections()
    if when == "undone":
        denoiser.unfuse_qkv_projections()  # diffusers leaves the fused layers behind
    assert any("to_qkv" in name for name in denoiser.state_dict())
    with torch.no_grad():
        wanted = run(denoiser, SIZE)
    alone = standalone(denoiser, tmp_path)
    torch.testing.assert_close(run(alone, SIZE), wanted)
    assert alone.state_dict().keys() == standalone(student(), tmp_path / "plain").state_dict().keys()
    assert not any("to_qkv" in name for name in changed_tensors(denoiser))


def test_fused_projections_that_were_changed_are_refused(tmp_path: Path) -> None:
    denoiser = student()
    denoiser.fuse_qkv_projections()
    denoiser.get_submodule(f"{PATH}.to_qkv").weight.data.mul_(2)
    with pytest.raises(
        ValueError, match=r"mid_block.*attn1\.to_qkv is fused and no longer holds what to_q, to_k, to_v"
    ):
        standalone(denoiser, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [{}, {"train_projections": True}], ids=["kept", "trained"])
def test_an_adapter_is_refused_before_anything_is_written(target: str, options: Any, tmp_path: Path) -> None:
    for denoiser in (
        student(adapted(tiny.unet().eval(), TARGETS[target]), **options),
        adapted(student(**options), TARGETS[target]),
    ):
        told = rf"{TARGETS[target].replace('.', '[.]')} has an adapter.*fuse_lora\(\), then unload_lora\(\)"
        for write in (
            partial(standalone, denoiser, tmp_path / "out"),
            partial(
                write_delta, denoiser, tmp_path / "out", teacher="t", revision=None, variant=None, teacher_hash="0"
            ),
        ):
            with pytest.raises(ValueError, match=told):
                write()
        assert not (tmp_path / "out").exists()
        denoiser.unload_lora()
        standalone(denoiser, tmp_path / "without")


def test_an_adapter_merged_into_the_weights_is_exported(tmp_path: Path) -> None:
    base = adapted(tiny.unet().eval(), *TARGETS.values())
    with torch.no_grad():
        wanted = run(base, SIZE)
    base.fuse_lora()
    base.unload_lora()
    alone = standalone(student(base, SoftmaxAttention, train_projections=True), tmp_path)
    torch.testing.assert_close(run(alone, SIZE), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(tiny.unet().eval(), SIZE), wanted)


def test_other_things_around_layers_are_named(tmp_path: Path) -> None:
    for end in (lambda _: None, finalize):
        denoiser = student(mixer=partial(DeltaConvBlock, kernel_size=3))
        end(denoiser)
        weight_norm(denoiser.mid_block.attentions[0].proj_in)
        with pytest.raises(
            ValueError, match=r"no plain UNet2D.*mid_block\.attentions\.0\.proj_in\.param.* is not known"
        ):
            standalone(denoiser, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_adapter_is_told_before_training(tmp_path: Path) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    module = AttentionDistillation(teacher, Blend, [Stage("layerwise", 2)], trained={"init_samples": 0})
    rehearse(module)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn1.to_q"]), module.denoiser)
    with pytest.raises(ValueError, match=r"attn1\.to_q has an adapter"):
        rehearse(module)
