"""Run as a script in a process of its own: what a user without Sparsight does with exports. See test_export.py."""

# ruff: noqa: E402
from __future__ import annotations

import copy
import importlib.abc
import logging
import pickle
import sys
import warnings
from pathlib import Path

PROJECT = ("sparsight", "blocks", "callbacks", "datamodules", "lightning_modules", "lightning", "wave_mixer")


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.split(".")[0] in PROJECT:
            raise ImportError(f"{fullname} must not be needed")


sys.meta_path.insert(0, Absent())

import torch
from accelerate import cpu_offload_with_hook
from diffusers import AutoModel, DiffusionPipeline, DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file

ROOT = Path(sys.argv[1])
TENSORS = load_file(ROOT / "expected.safetensors")


def check(denoiser: torch.nn.Module, name: str, tolerance: float = 1e-5) -> None:
    """Same question, same answer."""
    inputs = {key.partition(".")[2]: value for key, value in TENSORS.items() if key.startswith(f"{name}.")}
    wanted = inputs.pop("answer")
    dtype = denoiser.dtype
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.no_grad():
        answer = denoiser(**inputs, return_dict=False)[0].float()
    error = float((answer - wanted).norm() / wanted.norm())
    assert error <= tolerance, f"{name}: {error}"


class Said(logging.Handler):
    """Keeps what libraries say while something is loaded."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def say_nothing(name: str, part: str) -> None:
    """Loading a pipeline or a model, in a precision or not, makes diffusers say that code is run, and nothing else."""
    said = Said()
    logging.getLogger("diffusers").addHandler(said)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        DiffusionPipeline.from_pretrained(ROOT / name, trust_remote_code=True)
        low = DiffusionPipeline.from_pretrained(str(ROOT / name), trust_remote_code=True, dtype=torch.bfloat16)
        alone = AutoModel.from_pretrained(
            f"{ROOT}/{name}", subfolder=part, trust_remote_code=True, dtype=torch.bfloat16
        )
        AutoModel.from_pretrained(f"{ROOT}/{name}/{part}", trust_remote_code=True)
    logging.getLogger("diffusers").removeHandler(said)
    assert getattr(low, part).dtype == alone.dtype == torch.bfloat16
    lines = [line for line in said.lines if not line.startswith("`trust_remote_code` is enabled")]
    assert not lines and not warned, (lines, [str(warning.message) for warning in warned])


def student(name: str, part: str, base: type) -> None:
    """Every way of loading and copying, all alive at once, since the file of code is run again at each load."""
    say_nothing(name, part)
    first = AutoModel.from_pretrained(f"{ROOT}/{name}", subfolder=part, trust_remote_code=True)
    second = AutoModel.from_pretrained(f"{ROOT}/{name}/{part}", trust_remote_code=True, low_cpu_mem_usage=False)
    pipeline = DiffusionPipeline.from_pretrained(ROOT / name, trust_remote_code=True)
    loaded = getattr(pipeline, part)
    assert type(first) is type(second) is type(loaded) and isinstance(first, base)
    for denoiser in (first, second, loaded, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        check(denoiser, name)
    by_hand = DiffusionPipeline.from_pretrained(
        ROOT / name, trust_remote_code=True, device_map="balanced", **{part: first}
    )
    assert getattr(by_hand, part) is first
    half = DiffusionPipeline.from_pretrained(
        ROOT / name, trust_remote_code=True, variant="fp16", torch_dtype=torch.float16
    )
    assert getattr(half, part).dtype == torch.float16
    check(getattr(half, part), name, tolerance=2e-2)
    check(second.to(torch.bfloat16), name, tolerance=5e-2)
    offloaded, hook = cpu_offload_with_hook(copy.deepcopy(first), execution_device="cpu")
    check(offloaded, name)
    hook.offload()
    half.save_pretrained(ROOT / f"{name}_half_again")
    assert {p.name for p in (ROOT / f"{name}_half_again").rglob("*.py")} == {
        p.name for p in (ROOT / name).rglob("*.py")
    }


student("student", "transformer", DiTTransformer2DModel)
student("sd", "unet", UNet2DConditionModel)
student("joint", "transformer", SD3Transformer2DModel)

for name, part in (
    ("student", "transformer"),
    ("sd", "unet"),
    ("joint", "transformer"),
):  # saved again by test_export.py, with diffusers alone
    check(getattr(DiffusionPipeline.from_pretrained(ROOT / f"{name}_again", trust_remote_code=True), part), name)

again = AutoModel.from_pretrained(f"{ROOT}/student_again", subfolder="transformer", trust_remote_code=True)
check(again, "student")

teacher = DiffusionPipeline.from_pretrained(ROOT / "teacher", trust_remote_code=True)
check(teacher.transformer, "teacher")
check(AutoModel.from_pretrained(f"{ROOT}/teacher", subfolder="transformer"), "teacher")
torch.manual_seed(0)
images = teacher(class_labels=["coat", 3], num_inference_steps=2, output_type="pt").images
torch.testing.assert_close(images, TENSORS["images"])
print("all loaded")
