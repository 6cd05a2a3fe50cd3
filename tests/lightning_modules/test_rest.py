"""What trains beside mixers: norms, feed-forward layers, patterns, everything, adapters; the teacher stays."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from blocks import DeltaConvBlock, NeighborhoodAttention
from callbacks import TrainableEMA
from lightning_modules import AttentionDistillation
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.export.delta import mount, write_delta
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.measure.memory_estimate import estimate_memory
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.surgery.replace import finalize, replace, restore, set_mode
from sparsight.diffusion.surgery.rest.choice import chosen_parameters
from sparsight.diffusion.surgery.rest.low_rank import LoRA
from sparsight.diffusion.surgery.rest.rest import free_rest, rest_of
from sparsight.diffusion.surgery.shell import Mode, Shell
from sparsight.diffusion.train.stages import LossTerms, Stage
from tests import tiny
from tests.tiny_distillation import distillation, trainer
from tests.tiny_flux import flux
from tests.tiny_rows import few
from tests.tiny_sd3 import sd35
from tests.tiny_wan import wan

CONV, WINDOW = partial(DeltaConvBlock, kernel_size=3), partial(NeighborhoodAttention, kernel_size=3)
FAMILIES: dict[str, Any] = tiny.FAMILIES | {"sd35": sd35, "flux": flux, "wan": wan}
SIZES = {"flux": (8, 12), "wan": (3, 8, 8)}


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path / "teacher"))


def made(denoiser: Any, mixer: Any, wanted: list[str], lora: LoRA | None = None, **options: Any) -> set[str]:
    """Put mixers and what trains beside them into a denoiser; names of the latter."""
    shells = replace(denoiser, mixer, **options)
    return set(free_rest(denoiser, shells, chosen_parameters(denoiser, shells, wanted), lora))


def answer(denoiser: Any, inputs: dict[str, Any], mode: Mode) -> Tensor:
    set_mode([m for m in denoiser.modules() if isinstance(m, Shell)], mode)
    with torch.no_grad():
        return denoiser(**inputs, return_dict=False)[0]


ROWS = [
    (name, mixer, wanted, lora)
    for name in FAMILIES
    for mixer in (CONV, WINDOW)
    for wanted, lora in (([], LoRA(2)), (["everything"], None), (["feed_forward"], LoRA(2)), (["norms"], None))
    if wanted != ["norms"] or name not in ("dit", "pixart")  # whose norms have no parameters
    if mixer is WINDOW or name != "wan"  # video
]


@pytest.mark.parametrize(
    ("name", "mixer", "wanted", "lora"),
    few(ROWS, ROWS[0], next(r for r in ROWS if r[0] == "flux" and r[1] is WINDOW and r[2] == ["feed_forward"])),
)
def test_what_is_named_moves_and_nothing_else(name: str, mixer: Any, wanted: list[str], lora: LoRA | None) -> None:
    untouched = FAMILIES[name]()
    inputs = example_inputs(untouched, batch=2, size=SIZES.get(name))
    with torch.no_grad():
        expected = untouched.eval()(**inputs, return_dict=False)[0]
    denoiser = FAMILIES[name]()
    names = made(denoiser, mixer, wanted, lora)
    assert torch.equal(answer(denoiser, inputs, Mode.TEACHER), expected)
    trained = {n: p for n, p in denoiser.named_parameters() if p.requires_grad}
    assert names and names <= trained.keys() and all(n in names or "mixer." in n for n in trained)
    set_mode([m for m in denoiser.modules() if isinstance(m, Shell)], Mode.STUDENT)
    before = {n: p.detach().clone() for n, p in denoiser.named_parameters()}
    for _ in range(2):  # of an adapter one half moves first
        denoiser.zero_grad()
        denoiser(**inputs, return_dict=False)[0].square().mean().backward()
        with torch.no_grad():
            for parameter in trained.values():
                parameter.sub_(0.01 * parameter.grad.sign())
    still = {n for n, p in denoiser.named_parameters() if torch.equal(p, before[n])}
    # the last block of a joint transformer asks its text for queries, and drops the answer
    dead = {n for n in still & names if "add_q_proj" in n or "norm_added_q" in n}
    assert still & names == dead and len(dead) < len(names) / 4
    assert {n for n in before if n not in trained} <= still
    assert torch.equal(answer(denoiser, inputs, Mode.TEACHER), expected)
    student = answer(denoiser, inputs, Mode.STUDENT)
    assert torch.isfinite(student).all() and not torch.allclose(student, expected)
    finalize(denoiser)
    assert rest_of(denoiser) is None and not any(".lora_" in n for n, _ in denoiser.named_parameters())
    torch.testing.assert_close(answer(denoiser, inputs, Mode.STUDENT), student, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "checkpointing"), few([(n, c) for n in FAMILIES for c in (False, True)], ("sd35", True))
)
def test_a_base_in_half_precision_has_a_rest_in_float32(name: str, checkpointing: bool) -> None:
    denoiser = FAMILIES[name]().bfloat16().eval()
    inputs = example_inputs(denoiser, batch=2, size=SIZES.get(name), dtype=torch.bfloat16)
    with torch.no_grad():
        expected = denoiser(**inputs, return_dict=False)[0]
    names = made(denoiser, WINDOW, ["feed_forward"], LoRA(2))
    assert all(denoiser.get_parameter(n).dtype == torch.float32 for n in names)
    assert compute_dtype(denoiser) == torch.bfloat16
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    assert torch.equal(answer(denoiser, inputs, Mode.TEACHER), expected)
    assert answer(denoiser, inputs, Mode.STUDENT).dtype == torch.bfloat16  # as exports are compared, without autocast
    with torch.autocast("cpu", torch.bfloat16):
        denoiser(**inputs, return_dict=False)[0].square().mean().backward()
    grads = [denoiser.get_parameter(n).grad for n in names]
    assert all(g is not None and g.dtype == torch.float32 for g in grads)


CHOICES: dict[str, dict[str, Any]] = {
    "everything": {"trained": {"rest": ["everything"]}},
    "lora": {"trained": {"rest": ["*.norm1.linear.*"], "lora": LoRA(2), "projections": True}, "mixer": WINDOW},
}


@pytest.mark.parametrize("choice", few(list(CHOICES), "lora"))
def test_a_run_resumes_bitwise_and_its_export_is_what_was_trained(teacher: str, tmp_path: Path, choice: str) -> None:
    data = partial(tiny.image_data, tmp_path, batch_size=4, count=20)

    def fitted(stop: int, **options: Any) -> AttentionDistillation:
        module = distillation(teacher, **CHOICES[choice])
        saving = ModelCheckpoint(tmp_path / f"to_{stop}", save_last=True, every_n_train_steps=1)
        run = trainer(tmp_path, callbacks=[TrainableEMA(0.5), saving], max_steps=stop)
        run.fit(module, data(), **options)
        return module

    whole = fitted(6)
    for stop in (2, 4):
        fitted(stop)
        last = tmp_path / f"to_{stop}" / "last.ckpt"
        resumed = fitted(6, ckpt_path=last)
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    fresh = distillation(teacher, **CHOICES[choice]).state_dict()
    assert fresh.keys() == whole.state_dict().keys() >= {f"denoiser.{name}" for name in whole.rest_names}
    moved = {name for name, value in whole.state_dict().items() if not torch.equal(value, fresh[name])}
    assert {f"denoiser.{n}" for n in whole.rest_names if not n.endswith("to_k.bias")} <= moved

    base = load_pipeline(teacher).transformer
    noised = whole.noised(next(iter(image_batches())), step=0, condition_dropout=0.0)
    untouched = distillation(teacher).distiller.predict(noised, Mode.TEACHER)
    assert torch.equal(whole.distiller.predict(noised, Mode.TEACHER), untouched)
    student = whole.distiller.predict(noised, Mode.STUDENT)
    assert not torch.allclose(student, untouched)

    write_pipeline(whole.diffusion, tmp_path / "student", fp16=False)
    exported = load_pipeline(str(tmp_path / "student")).transformer
    torch.testing.assert_close(predict(exported, *given(noised)), student, rtol=1e-4, atol=1e-5)
    told = {"revision": None, "variant": None, "teacher_hash": whole.teacher_hash}
    write_delta(whole.denoiser, tmp_path / "delta", teacher=teacher, **told)
    mounted = mount(base, tmp_path / "delta")
    for name, value in exported.state_dict().items():
        torch.testing.assert_close(mounted.state_dict()[name], value, rtol=0, atol=0)
    restore(whole.denoiser)
    original = load_pipeline(teacher).transformer.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in whole.denoiser.state_dict().items())


def image_batches() -> Any:
    yield {"image": torch.randn(4, 1, 8, 8), "label": torch.arange(4), "index": torch.arange(4)}


def given(noised: dict[str, Any]) -> tuple[Any, Any, Any]:
    return noised["xt"], noised["timestep"], noised["cond"]


def test_mixers_alone_learn_in_a_layerwise_stage(teacher: str) -> None:
    module = distillation(teacher, trained={"rest": ["everything"]})
    assert not any(module.denoiser.get_parameter(name).requires_grad for name in module.rest_names)
    noised = module.noised(next(image_batches()), step=0, condition_dropout=0.0)
    sum(module.distiller.layerwise(noised).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    module._stage_index = 1
    module.require_gradients()
    terms = module.distiller.end_to_end(noised, LossTerms(to_target=1.0))
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for name, p in module.named_parameters() if p.requires_grad), "DDP would wait"


def test_what_trains_twice_is_in_the_estimate(teacher: str) -> None:
    plain, whole = distillation(teacher), distillation(teacher, trained={"rest": ["everything"]})
    adapted = distillation(teacher, trained={"lora": LoRA(2)})
    told = {}
    for name, module in {"plain": plain, "whole": whole, "adapted": adapted}.items():
        with module.all_learning():
            told[name] = estimate_memory(module.denoiser, objectives=["layerwise", "end_to_end"], batch=2)
    rest = sum(whole.denoiser.get_parameter(name).numel() * 4 for name in whole.rest_names)
    low = sum(adapted.denoiser.get_parameter(name).numel() * 4 for name in adapted.rest_names)
    assert told["whole"].standing["what the teacher keeps of what is trained"] == rest
    assert "what the teacher keeps of what is trained" not in told["adapted"].standing
    for name, more in (("whole", rest), ("adapted", low)):
        assert told[name].standing["what is trained"] - told["plain"].standing["what is trained"] == more
        layerwise = [key for key in told[name].stages if "layerwise" in key]
        assert all(told[name].stages[key] == told["plain"].stages[key] for key in layerwise)


LAYERWISE = [Stage("layerwise", 1)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trained": {"rest": ["norms"]}}, "norms chooses nothing: norms of this denoiser have no parameters"),
        (
            {"trained": {"rest": ["*.fff.*"]}},
            r"'\*.fff.\*' chooses nothing; allowed are norms, feed_forward, everything",
        ),
        ({"trained": {"rest": ["*.attn1.*"]}}, r"'\*.attn1.\*' chooses nothing"),  # gone: feature mixers stand there
        ({"trained": {"lora": LoRA(targets=["*.attn1.*"])}}, r"targets: '\*.attn1.\*' matches no linear layer"),
        ({"trained": {"rest": ["everything"], "lora": LoRA()}}, "matches no linear layer that does not train already"),
        ({"trained": {"rest": ["everything"]}, "stages": LAYERWISE}, "model.trained.rest is for end-to-end stages"),
        ({"trained": {"lora": LoRA()}, "stages": LAYERWISE}, "model.trained.lora is for end-to-end stages"),
        ({"trained": {"lora": LoRA()}, "mixer": WINDOW}, "a layerwise stage trains mixers and their projections alone"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(teacher: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        distillation(teacher, **options)


def test_a_trainer_that_cannot_serve_it_is_refused_before_the_first_batch(teacher: str, tmp_path: Path) -> None:
    half: dict[str, Any] = {"loading": {"dtype": "bfloat16"}, "compute": {"gradient_checkpointing": True}}
    half |= {"trained": {"rest": ["feed_forward"]}}
    with pytest.raises(ConfigurationError, match=r"train in float32 in a denoiser in bfloat16.*bf16-mixed"):
        trainer(tmp_path).fit(distillation(teacher, **half), tiny.image_data(tmp_path))
    split = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    module = distillation(teacher, trained={"lora": LoRA()})
    module.trainer = Trainer(accelerator="cpu", strategy=split, logger=False)
    with pytest.raises(ConfigurationError, match="which ModelParallelStrategy"):
        module.refuse_rest(checkpointing=False)
