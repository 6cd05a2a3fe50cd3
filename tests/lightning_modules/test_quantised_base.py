"""A base whose frozen layers are held in 8 bits: what trains is as ever, and exports hold the base's own weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from blocks import NeighborhoodAttention
from lightning_modules import AttentionDistillation
from sparsight.common.errors import ConfigurationError
from sparsight.common.measure.memory_table import tensor_bytes
from sparsight.common.quantised.weights import decoded, is_coded
from sparsight.diffusion.export.delta import mount
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.measure.memory_estimate import estimate_memory
from sparsight.diffusion.model.load import denoiser_name, load_pipeline
from sparsight.diffusion.surgery.replace import finalize, set_mode
from sparsight.diffusion.surgery.rest.low_rank import LoRA
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.train.stages import Stage
from sparsight.publish.export import export
from sparsight.publish.facts import Run
from tests import tiny
from tests.tiny_distillation import distillation, trainer
from tests.tiny_extras import needs_torchao
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_rows import few
from tests.tiny_sd3 import save_sd3_pipeline
from tests.tiny_wan import save_wan_pipeline

WINDOW = partial(NeighborhoodAttention, kernel_size=3)
SAVE: dict[str, Callable[..., Path]] = {
    "pixel_dit": tiny.save_pixel_pipeline,
    "sd": tiny.save_sd_pipeline,
    "flux": save_flux_pipeline,
    "sd3": save_sd3_pipeline,
    "wan": save_wan_pipeline,
}
SIZES = {"flux": (8, 12), "wan": (3, 8, 8)}


def module_of(teacher: Path, **options: Any) -> AttentionDistillation:
    loading = {"quantization": "int8", **options.pop("loading", {})}
    return distillation(str(teacher), loading=loading, **options)


def answer(module: AttentionDistillation, inputs: dict[str, Any], mode: Mode) -> torch.Tensor:
    set_mode(module.shells.values(), mode)
    return module.denoiser(**inputs, return_dict=False)[0]


@needs_torchao
@pytest.mark.parametrize("mixer", few([None, WINDOW], WINDOW), ids=["feature", "core"])
@pytest.mark.parametrize("family", few(list(SAVE), "flux"))
def test_frozen_layers_are_codes_and_everything_else_is_as_it_was(tmp_path: Path, family: str, mixer: Any) -> None:
    if family == "wan" and mixer is None:
        pytest.skip("video has no such mixer")
    teacher = SAVE[family](tmp_path / "teacher")
    options: dict[str, Any] = {"trained": {"lora": LoRA(2), "projections": mixer is not None}}
    options |= {} if mixer is None else {"mixer": mixer}
    plain, module = distillation(str(teacher), **options), module_of(teacher, **options)
    assert module.teacher_hash == plain.teacher_hash
    wanted = dict(plain.denoiser.named_parameters())
    codes = {name for name, p in module.denoiser.named_parameters() if is_coded(p)}
    assert len(codes) > 5 and not any(wanted[name].requires_grad for name in codes)
    for name, parameter in module.denoiser.named_parameters():
        assert parameter.requires_grad == wanted[name].requires_grad
        if name in codes:
            step = wanted[name].abs().amax(1, keepdim=True) / 127
            assert ((decoded(parameter) - wanted[name]).abs() <= 0.51 * step).all()
        elif "lora_A" not in name:  # which is random
            assert torch.equal(parameter, wanted[name])
    inputs = example_inputs(plain.denoiser, batch=2, size=SIZES.get(family))
    with torch.no_grad():
        exact, coarse = answer(plain, inputs, Mode.TEACHER), answer(module, inputs, Mode.TEACHER)
    assert 0 < (coarse - exact).norm() / exact.norm() < 0.03
    trained = [p for p in module.denoiser.parameters() if p.requires_grad]
    with module.all_learning():
        answer(module, inputs, Mode.STUDENT).square().mean().backward()
    assert sum(p.grad is not None for p in trained) > len(trained) / 2


@needs_torchao
def test_a_backward_pass_keeps_codes_alone_and_gives_the_gradients_of_what_they_stand_for() -> None:
    from sparsight.common.quantised.int8 import coded

    layer = nn.Linear(256, 256).requires_grad_(False)
    twin = nn.Linear(256, 256).requires_grad_(False)
    layer.weight = nn.Parameter(coded(layer.weight), requires_grad=False)
    twin.load_state_dict({"weight": decoded(layer.weight), "bias": layer.bias})
    assert tensor_bytes([layer.weight]) < tensor_bytes([twin.weight]) / 3
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(4, 256, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            wanted = twin(x)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                found = layer(x)
        assert found.dtype == wanted.dtype == dtype
        torch.testing.assert_close(found, wanted)
        grads = [torch.autograd.grad(y.float().square().sum(), x)[0] for y in (found, wanted)]
        torch.testing.assert_close(*grads, rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-4)
    assert all(tensor.numel() < 256 * 256 for tensor in kept)


ROWS = [
    ("pixel_dit", {"trained": {"lora": LoRA(2)}}),
    ("pixel_dit", {"mixer": WINDOW, "trained": {"projections": True}, "loading": {"dtype": "bfloat16"}}),
    ("pixel_dit", {"trained": {"rest": ["*.norm1.linear.*"], "init_samples": 4}}),
]


@needs_torchao
@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize(("family", "options"), few(ROWS, ROWS[0]))
def test_both_stages_resume_bitwise_and_the_export_has_the_weights_of_the_base(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    teacher = SAVE[family](tmp_path / "teacher")
    data = partial(tiny.image_data, tmp_path, batch_size=4, count=20)

    def fitted(stop: int, **given: Any) -> AttentionDistillation:
        module = module_of(teacher, **options)
        saving = ModelCheckpoint(tmp_path / f"to_{stop}", save_last=True, every_n_train_steps=1)
        trainer(tmp_path, callbacks=[saving], max_steps=stop).fit(module, data(), **given)
        return module

    whole = fitted(6)
    fitted(2)
    resumed = fitted(6, ckpt_path=tmp_path / "to_2" / "last.ckpt")
    state = whole.state_dict()
    assert state.keys() == {n.removeprefix("model.") for n in state} and not any(map(is_coded, state.values()))
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())
    codes = {name for name, parameter in whole.denoiser.named_parameters() if is_coded(parameter)}
    export(whole, tmp_path / "student", run=Run())
    assert codes == {name for name, parameter in whole.denoiser.named_parameters() if is_coded(parameter)}
    base = load_pipeline(str(teacher), dtype=torch.float32)
    student = load_pipeline(str(tmp_path / "student"))
    part = denoiser_name(base)
    stored, found = base.components[part].state_dict(), student.components[part].state_dict()
    untouched = {name for name in codes if name in stored and name in found and ".attn1." not in name}
    assert len(untouched) > 1 or "lora" in options["trained"]
    assert all(torch.equal(found[name], stored[name]) for name in untouched)
    if "lora" in options["trained"]:  # what was below adapters is the base's, too
        name = next(n for n in codes if ".base_layer." in n and "ff" in n)
        layer = whole.denoiser.get_submodule(name.removesuffix(".base_layer.weight"))
        own = name.replace(".base_layer", "")
        torch.testing.assert_close(found[own], stored[own] + layer.get_delta_weight("sparsight"))
    plan = json.loads((tmp_path / "student" / "delta" / "plan.json").read_text())
    assert plan["trained_beside"] == "int8"
    assert "held in int8" in (tmp_path / "student" / "README.md").read_text()
    mounted = mount(load_pipeline(str(teacher)), tmp_path / "student" / "delta").components[part].state_dict()
    for name, value in found.items():
        half = options.get("loading") == {"dtype": "bfloat16"}  # in which all but codes was held
        torch.testing.assert_close(mounted[name], value, rtol=1e-2 if half else 1e-5, atol=1e-3 if half else 1e-6)


@needs_torchao
@pytest.mark.slow
def test_the_estimate_counts_codes_and_what_is_finalised_holds_plain_layers_below_adapters(tmp_path: Path) -> None:
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    trained = {"lora": LoRA(2)}
    plain, module = distillation(str(teacher), trained=trained), module_of(teacher, trained=trained)
    frozen = [
        next(
            v
            for k, v in estimate_memory(m.denoiser, objectives=["end_to_end"], batch=1).standing.items()
            if "frozen" in k
        )
        for m in (plain, module)
    ]
    assert frozen[1] < 0.6 * frozen[0]
    activations = [
        sum(estimate_memory(m.denoiser, objectives=["end_to_end"], batch=1).stages.values()) for m in (plain, module)
    ]
    assert activations[1] == pytest.approx(activations[0], rel=0.02)
    finalize(module.denoiser)
    inputs = example_inputs(plain.denoiser, batch=1)
    assert torch.isfinite(module.denoiser(**inputs, return_dict=False)[0]).all()


def test_what_cannot_be_quantised_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tmp_path / "nowhere"
    with monkeypatch.context() as patched:
        patched.setattr("sparsight.common.quantised.weights.find_spec", lambda name: None)
        with pytest.raises(
            ConfigurationError, match=r"model.loading.quantization: int8 needs torchao.*sparsight\[quantised\]"
        ):
            module_of(teacher)
    if importlib.util.find_spec("torchao") is None:
        return
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    with pytest.raises(ConfigurationError, match="finds no frozen linear layer"):
        module_of(teacher, stages=[Stage("end_to_end", 1)], mixer=WINDOW, trained={"rest": ["everything"]})
    split = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    with pytest.raises(ConfigurationError, match=r"int8 and ModelParallelStrategy \(FSDP2\) do not go together"):
        trainer(tmp_path, strategy=split, devices=1).fit(module_of(teacher), tiny.image_data(tmp_path))
