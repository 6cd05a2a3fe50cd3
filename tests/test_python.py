"""What ``import sparsight`` offers, used as its documentation shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import datamodules
import sparsight
from blocks import DeltaConvBlock, SoftmaxAttention
from datamodules import ImageDataModule
from sparsight import Stage, TuningStage
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.train.stages import LossTerms
from sparsight.lvlm.surgery.selection import Explicit
from tests import tiny
from tests.tiny_lvlm import tiny_lvlm

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_every_name_is_there_and_documented_and_none_is_imported_before() -> None:
    for name in sparsight.__all__:
        found = getattr(sparsight, name)
        assert name == "__version__" or (found.__doc__ and len(found.__doc__) > 40), name
        assert name in dir(sparsight)
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        _ = sparsight.distil  # type: ignore[attr-defined]
    script = "import sys, sparsight; assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.usefixtures("reload_here")
def test_a_student_is_distilled_evaluated_exported_and_loaded(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    data = tiny.image_data(tmp_path)
    stages = [sparsight.Stage("layerwise", 2, warmup_steps=1), sparsight.Stage("end_to_end", 2, warmup_steps=1)]
    trainer = QUIET | {"default_root_dir": str(tmp_path), "enable_checkpointing": False}
    mixer = partial(DeltaConvBlock, kernel_size=3)
    options: dict[str, Any] = {
        "stages": stages,
        "trainer": trainer,
        "sampling": Sampling(2),
        "trained": {"init_samples": 0},
    }
    talks = datamodules.InstructionDataModule(teacher, datamodules.TextQuestions(), batch_size=2)
    with pytest.raises(ValueError, match=r"^data: InstructionDataModule serves image-text models"):
        sparsight.distill(teacher, mixer, talks, **options)
    with pytest.raises(ValueError, match="exists"):
        sparsight.distill(teacher, mixer, data, output=tmp_path, **options)
    module = sparsight.distill(teacher, mixer, data, output=tmp_path / "student", **options)
    assert module.trainer.global_step == 4
    assert f"Exported to {tmp_path / 'student'}" in caplog.text
    found = sparsight.evaluate(module, data, trainer=QUIET)
    assert 0 < found["val/output_relative_l2"] < 10
    noise = ("in eval mode at the start of training", "You have overridden `transfer_batch_to_device`")
    assert not [w for w in recwarn if any(text in str(w.message) for text in noise)], "the command shows none of it"
    pipeline = sparsight.load(str(tmp_path / "student"))
    assert sum(p.numel() for p in pipeline.transformer.parameters()) > 0
    with pytest.raises(ValueError, match="split is 'train'; allowed: val, test"):
        sparsight.evaluate(module, data, split="train")


def test_surgery_by_hand() -> None:
    denoiser = tiny.dit()
    inputs = {
        "hidden_states": torch.randn(1, 1, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }
    with torch.no_grad():
        before = denoiser(**inputs).sample
        sites = sparsight.find_sites(denoiser)
        plan = [sparsight.PlanEntry(sparsight.SiteSelection([sites[0].path]), SoftmaxAttention)]
        shells = sparsight.replace(denoiser, plan)
        assert list(shells) == [sites[0].path]
        sparsight.restore(denoiser)
        assert torch.equal(denoiser(**inputs).sample, before)


def test_layers_are_selected_and_removed() -> None:
    model = tiny_lvlm("llava")
    depth = model.config.text_config.num_hidden_layers
    chosen = sparsight.select_layers(model)
    assert chosen == sparsight.select_layers(depth) and 0 < len(chosen) < depth
    left = sparsight.remove_layers(model, [depth - 1])
    assert model.config.text_config.num_hidden_layers == depth - 1 == len(left)


def layers_of_a_name() -> Any:
    return sparsight.select_layers(8, "Uniform")  # type: ignore[arg-type]


DATA = ImageDataModule(datamodules.IdxRecords("images", "labels"), image_size=8)
NO_FUNCTION: dict[str, tuple[Callable[[], Any], str]] = {
    "objective": (lambda: Stage("layer_wise", 2), "objective is 'layer_wise'; allowed: 'layerwise', .*mean layerwise"),
    "rate": (lambda: Stage("layerwise", 2, lr="1e-3"), "lr is '1e-3': give a number"),
    "terms": (
        lambda: LossTerms(site_on="outputs"),
        "loss.site_on is 'outputs'; allowed: 'output', 'residual'; did you",
    ),
    "tuning": (lambda: TuningStage(["layers"], 2), r"steps is \['layers'\]: give a whole number"),
    "part": (lambda: TuningStage(2, "layers"), r"train is 'layers': give a list, \['layers'\]"),
    "rule": (layers_of_a_name, "layers is 'Uniform': give a rule of .* such as Uniform"),
    "model": (lambda: sparsight.select_layers("my-vlm"), "model is 'my-vlm': give an image-text model"),
    "data": (lambda: sparsight.distill("t", DeltaConvBlock, "pictures"), "data is 'pictures': give a datamodule"),
    "stages": (
        lambda: sparsight.distill("t", DeltaConvBlock, DATA, stages=Stage("layerwise", 2)),
        "give a list of Stage",
    ),
    "teacher": (lambda: sparsight.distill(3, DeltaConvBlock, DATA), "teacher is 3: give a folder"),
    "mixer": (lambda: sparsight.distill("t", "DeltaConv", DATA), "mixer is 'DeltaConv': give a class"),
    "option": (lambda: sparsight.distill("t", DeltaConvBlock, DATA, sitess=1), "no option sitess; did you mean sites?"),
    "trainer": (
        lambda: sparsight.distill("t", DeltaConvBlock, DATA, trainer={"max_epoch": 1}),
        "no option trainer.max_epoch; did you mean max_epochs",
    ),
    "layers": (lambda: sparsight.tune("m", DATA, layers="All"), "layers is 'All': give a rule"),
    "dtype": (lambda: sparsight.TeacherLoading(dtype="bf16"), "loading.dtype is 'bf16'; allowed: .*bfloat16"),
    "quantization": (lambda: sparsight.ModelLoading(quantization="int4"), "loading.quantization is 'int4'; allowed"),
    "half step": (lambda: Stage("layerwise", 2.5), "steps is 2.5: give a whole number"),
    "text": (lambda: sparsight.Sampling(guidance_scale="7"), "guidance_scale is '7': give a number"),
    "batch": (lambda: ImageDataModule(None, batch_size="4"), "batch_size is '4': give a whole number"),
    "share": (lambda: ImageDataModule(None, val_share=None), "val_share is None: give a number"),
    "seed": (lambda: sparsight.distill("t", DeltaConvBlock, DATA, seed="a"), "seed is 'a': give a whole number"),
    "linear": (lambda: sparsight.distill("t", torch.nn.Linear, DATA), "mixer is .*Linear.*: give a class, such as"),
    "depth": (lambda: sparsight.select_layers(-3), "model is -3; allowed: a depth of 1 or more"),
    "pipeline": (lambda: sparsight.replace(DATA, DeltaConvBlock), "denoiser is .*: give the denoiser of a pipeline"),
    "restored": (lambda: sparsight.restore(DATA), "denoiser is .*: give the denoiser of a pipeline"),
    "searched": (lambda: sparsight.find_sites(DATA), "denoiser is .*: give the denoiser of a pipeline"),
    "mode": (lambda: sparsight.set_mode([], "student"), "mode is 'student': give one of sparsight.Mode"),
    "shells": (lambda: sparsight.set_mode(tiny.dit(), sparsight.Mode.STUDENT), r"shells is .*: give the values\(\)"),
    "numbers": (lambda: sparsight.tune("m", DATA, layers=[0, 9]), r"layers is \[0, 9\]: give a rule"),
    "lora": (lambda: sparsight.tune("m", DATA, stages=[TuningStage(2)], lora=4), "lora is 4: give a LoRA"),
    "its lora": (lambda: sparsight.TrainedParts(lora={"rank": 4}), "lora is {'rank': 4}: give a LoRA"),
    "rest": (lambda: sparsight.TrainedParts(rest="norms"), r"rest is 'norms': give a list, \['norms'\]"),
    "include": (lambda: sparsight.SiteSelection(include="mid*"), r"include is 'mid\*': give a list, \['mid\*'\]"),
    "tokens": (lambda: sparsight.SiteSelection(min_tokens="64"), "min_tokens is '64': give a whole number"),
    "few tokens": (lambda: sparsight.SiteSelection(min_tokens=-5), "min_tokens is -5; allowed: 0 or more"),
    "predicate": (lambda: sparsight.SiteSelection(predicate="x"), "predicate is 'x': give a function"),
    "one layer": (lambda: Explicit(3), "layers is 3: give a list of layers"),
    "source": (lambda: ImageDataModule("pictures"), "train is 'pictures': give a source of records"),
    "callbacks": (
        lambda: sparsight.distill("t", DeltaConvBlock, DATA, trainer={"callbacks": "TrainableEMA"}),
        "trainer.callbacks is 'TrainableEMA': give a list of Callback",
    ),
}


@pytest.mark.parametrize("name", NO_FUNCTION)
def test_what_is_given_in_python_is_looked_at_before_anything_is_loaded(name: str) -> None:
    function, message = NO_FUNCTION[name]
    with pytest.raises(ConfigurationError, match=message):
        function()
