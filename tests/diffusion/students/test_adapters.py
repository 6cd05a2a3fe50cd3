"""LoRA, IP-Adapter and ControlNet made for the base model, on tiny students: what works, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from torch import Tensor, nn

from blocks import DeltaConvBlock, NeighborhoodAttention
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.students.adapters import check_adapter
from sparsight.diffusion.surgery.replace import replace
from sparsight.diffusion.surgery.sites import SiteSelection
from tests import tiny

MIXERS: dict[str, Any] = {
    "feature": (partial(DeltaConvBlock, kernel_size=3), None),
    "core": (partial(NeighborhoodAttention, kernel_size=3), None),
    "partial": (partial(DeltaConvBlock, kernel_size=3), SiteSelection(include=["mid_block.*"])),
}
REST = ("attn2.to_q", "attn2.to_out.0", "ff.net.2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of an SD1.5 and an SDXL teacher, exports of students of the former, and one of the latter."""
    root = tmp_path_factory.mktemp("adapters")
    tiny.save_sd_pipeline(root / "teacher")
    tiny.save_sdxl_pipeline(root / "sdxl_teacher")
    for name, (mixer, sites) in (MIXERS | {"sdxl": MIXERS["feature"]}).items():
        model = DiffusionModel.from_pretrained(str(root / ("sdxl_teacher" if name == "sdxl" else "teacher")))
        replace(model.denoiser, mixer, sites)
        write_pipeline(model, root / name, fp16=False)
    return root


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Code of these exports is kept, and found, beside them."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(root / "modules"))
    monkeypatch.syspath_prepend(str(root / "modules"))


def student(root: Path, name: str, *, own_code: bool = False) -> Any:
    """By diffusers with the code in the export, or by this project."""
    return (
        load_pipeline(str(root / name))
        if own_code
        else DiffusionPipeline.from_pretrained(root / name, trust_remote_code=True)
    )


def teacher(root: Path, name: str = "teacher") -> Any:
    return DiffusionPipeline.from_pretrained(root / name)


def lora(denoiser: nn.Module, *targets: str, prefix: str = "unet.") -> dict[str, Tensor]:
    weights = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(targets):
            weights[f"{prefix}{path}.lora_A.weight"] = torch.randn(2, module.in_features)
            weights[f"{prefix}{path}.lora_B.weight"] = torch.randn(module.out_features, 2)
    return weights


def ip_adapter(denoiser: Any, *, face_id: bool = False) -> dict[str, dict[str, Tensor]]:
    """Weights as they are published: by number, counting every attention of the base model."""
    weights: dict[str, Tensor] = {}
    for number, name in enumerate(denoiser.attn_processors):
        attention = denoiser.get_submodule(name.removesuffix(".processor"))
        channels = attention.to_k.out_features
        if name.endswith("attn2.processor"):
            weights[f"{number}.to_k_ip.weight"] = torch.randn(channels, 32)
            weights[f"{number}.to_v_ip.weight"] = torch.randn(channels, 32)
        for part in ("q", "k", "v", "out") if face_id else ():
            layer = attention.to_out[0] if part == "out" else attention.get_submodule(f"to_{part}")
            weights[f"{number}.to_{part}_lora.down.weight"] = torch.randn(2, layer.in_features)
            weights[f"{number}.to_{part}_lora.up.weight"] = torch.randn(layer.out_features, 2)
    projection = {"proj.weight": torch.randn(4 * 32, 16), "proj.bias": torch.zeros(4 * 32)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    return {"image_proj": projection | norm, "ip_adapter": weights}


def draw(pipeline: Any, **options: Any) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return pipeline("a cat", num_inference_steps=1, generator=noise, output_type="pt", **options).images


def open_controlnet(unet: Any) -> ControlNetModel:
    """A ControlNet of random weights where a fresh one has zeros."""
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    zeros = (controlnet.controlnet_cond_embedding.conv_out, controlnet.controlnet_mid_block)
    for convolution in (*controlnet.controlnet_down_blocks, *zeros):
        nn.init.normal_(convolution.weight)
    return controlnet


@pytest.mark.parametrize("own_code", [False, True])
def test_a_lora_beside_self_attention_works(root: Path, own_code: bool) -> None:
    pipeline = student(root, "feature", own_code=own_code)
    before = draw(pipeline)
    pipeline.load_lora_weights(lora(teacher(root).unet, *REST))
    assert not torch.allclose(draw(pipeline), before)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(draw(pipeline), before)


@pytest.mark.parametrize("own_code", [False, True])
def test_a_lora_on_replaced_self_attention_is_refused_with_its_keys(root: Path, own_code: bool) -> None:
    pipeline = student(root, "feature", own_code=own_code)
    before = draw(pipeline)
    good, bad = lora(teacher(root).unet, *REST), lora(teacher(root).unet, "attn1.to_q", "attn1.to_out.0")
    with pytest.raises(ValueError, match="mixers have replaced") as refused:
        pipeline.load_lora_weights(good | bad)
    listed = {line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")}
    assert listed == set(bad)
    torch.testing.assert_close(draw(pipeline), before)
    pipeline.unet.on_dead_keys = "warn"
    with pytest.warns(UserWarning, match="mixers have replaced"):
        pipeline.load_lora_weights(good | bad, adapter_name="both")
    with_rest = draw(pipeline)
    pipeline.delete_adapters("both")
    pipeline.load_lora_weights(good)
    torch.testing.assert_close(draw(pipeline), with_rest)


def test_core_mixers_and_kept_sites_take_a_lora_on_self_attention(root: Path) -> None:
    weights = lora(teacher(root).unet, "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
    pipeline = student(root, "core")
    before = draw(pipeline)
    pipeline.load_lora_weights(weights)
    assert not torch.allclose(draw(pipeline), before)
    some = student(root, "partial")
    kept = {key: value for key, value in weights.items() if "mid_block" not in key}
    some.load_lora_weights(kept)
    with pytest.raises(ValueError) as refused:
        some.load_lora_weights(weights, adapter_name="all")
    assert str(refused.value).count("mid_block") == len(weights) - len(kept)
    assert "down_blocks" not in str(refused.value)


def test_every_spelling_of_a_key_is_understood(root: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0"
    dead = [
        f"unet.{path}.attn1.to_q.lora_A.weight",
        f"base_model.model.{path}.attn1.to_out.0.lora_B.weight",
        f"unet.{path}.attn1.processor.to_v_lora.down.weight",
        f"lora_unet_{path.replace('.', '_')}_attn1_to_k.lora_down.weight",
    ]
    alive = [key.replace("attn1", "attn2") for key in dead] + [f"{path}.attn10.to_q.lora_A.weight"]
    for pipeline in (student(root, "feature"), student(root, "feature", own_code=True)):
        with pytest.raises(ValueError) as refused:
            check_adapter(pipeline.unet, dict.fromkeys(dead + alive))
        assert all(key in str(refused.value) for key in dead)
        assert check_adapter(pipeline.unet, dict.fromkeys(alive)).keys() == set(alive)
    assert check_adapter(student(root, "core").unet, dict.fromkeys(dead)).keys() == set(dead)
    training = DiffusionModel.from_pretrained(str(root / "teacher"))
    replace(training.denoiser, MIXERS["feature"][0])
    with pytest.warns(UserWarning, match="left out"):
        assert not check_adapter(training.denoiser, dict.fromkeys(dead), on_dead_keys="warn")


@pytest.mark.parametrize("name", list(MIXERS))
def test_ip_adapters_reach_the_cross_attentions_that_they_were_made_for(root: Path, name: str) -> None:
    base, pipeline = teacher(root), student(root, name)
    weights = ip_adapter(base.unet)
    before = draw(pipeline)
    for each in (base, pipeline):
        each.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    wanted = base.unet.attn_processors
    for path, processor in pipeline.unet.attn_processors.items():
        if path.endswith("attn2.processor"):
            assert torch.equal(processor.to_k_ip[0].weight, wanted[path].to_k_ip[0].weight)
    embeds = [torch.stack([torch.zeros(1, 16), torch.randn(1, 16)])]
    assert not torch.allclose(draw(pipeline, ip_adapter_image_embeds=embeds), before)


FACE_ID: dict[str, Any] = {"subfolder": "", "weight_name": "", "image_encoder_folder": None}


def lora_weights(unet: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in unet.state_dict().items() if ".lora_" in name}


@pytest.mark.parametrize("own_code", [False, True])
def test_face_id_adapters_reach_all_attentions_where_only_cores_were_replaced(root: Path, own_code: bool) -> None:
    base, pipeline = teacher(root), student(root, "core", own_code=own_code)
    weights = ip_adapter(base.unet, face_id=True)
    for each in (base, pipeline):
        each.load_ip_adapter(weights, **FACE_ID)
    wanted = lora_weights(base.unet)
    assert any(".attn1.to_q." in name for name in wanted) and any(".attn2.to_out." in name for name in wanted)
    found = lora_weights(pipeline.unet)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    embeds = [torch.stack([torch.zeros(1, 16), torch.randn(1, 16)])]
    assert draw(pipeline, ip_adapter_image_embeds=embeds).isfinite().all()


@pytest.mark.parametrize("name", ["feature", "partial"])
def test_face_id_adapters_are_refused_with_what_they_have_for_replaced_attentions(root: Path, name: str) -> None:
    base, pipeline = teacher(root), student(root, name)
    weights = ip_adapter(base.unet, face_id=True)
    gone = [n for n, path in enumerate(base.unet.attn_processors) if path not in pipeline.unet.attn_processors]
    assert gone
    with pytest.raises(ValueError, match="mixers have replaced") as refused:
        pipeline.load_ip_adapter(weights, **FACE_ID)
    listed = {line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")}
    assert listed == {key for key in weights["ip_adapter"] if "_lora." in key and int(key.split(".")[0]) in gone}
    assert getattr(pipeline.unet, "encoder_hid_proj", None) is None
    pipeline.unet.on_dead_keys = "warn"
    with pytest.warns(UserWarning, match="mixers have replaced"):
        pipeline.load_ip_adapter(weights, **FACE_ID)
    base.load_ip_adapter(weights, **FACE_ID)
    wanted, found = lora_weights(base.unet), lora_weights(pipeline.unet)
    assert found and all(torch.equal(value, wanted[key]) for key, value in found.items())
    assert {key for key in wanted if key not in found} == {key for key in wanted if _of(key, base, gone)}


def _of(key: str, base: Any, numbers: list[int]) -> bool:
    paths = [path.removesuffix(".processor") for path in base.unet.attn_processors]
    return any(key.startswith(f"{paths[number]}.") for number in numbers)


def test_controlnet_of_the_teacher_steers_the_student(root: Path) -> None:
    pipeline = student(root, "feature")
    controlnet = open_controlnet(teacher(root).unet)
    steered = StableDiffusionControlNetPipeline(
        **pipeline.components, controlnet=controlnet, requires_safety_checker=False
    )
    image = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(draw(steered, image=image), draw(pipeline))
    assert not torch.allclose(draw(steered, image=image), draw(steered, image=1 - image))
    again = StableDiffusionControlNetPipeline.from_pipe(pipeline, unet=pipeline.unet, controlnet=controlnet)
    torch.testing.assert_close(draw(again, image=image), draw(steered, image=image))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*attn1\.to_q"):
        ControlNetModel.from_unet(pipeline.unet)


def test_sdxl_students_take_and_refuse_the_same(root: Path) -> None:
    base, pipeline = teacher(root, "sdxl_teacher"), student(root, "sdxl")
    before = draw(pipeline)
    good, bad = lora(base.unet, *REST), lora(base.unet, "attn1.to_q", "attn1.to_out.0")
    with pytest.raises(ValueError, match="mixers have replaced") as refused:
        pipeline.load_lora_weights(good | bad)
    assert {line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")} == set(bad)
    pipeline.load_lora_weights(good)
    assert not torch.allclose(draw(pipeline), before)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(draw(pipeline), before)
    image = torch.rand(1, 3, 32, 32)
    steered = StableDiffusionXLControlNetPipeline(**pipeline.components, controlnet=open_controlnet(base.unet))
    assert not torch.allclose(draw(steered, image=image), before)
    assert not torch.allclose(draw(steered, image=image), draw(steered, image=1 - image))


def test_attention_processors_of_what_is_left_can_be_set(root: Path) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipeline = student(root, "feature")
    before = draw(pipeline)
    pipeline.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(draw(pipeline), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not match the number of attention layers"):
        pipeline.unet.set_attn_processor({name: AttnProcessor() for name in teacher(root).unet.attn_processors})
