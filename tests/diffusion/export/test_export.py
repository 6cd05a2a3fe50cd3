"""Exports of real, tiny runs, loaded with this project, with the code they carry, and by diffusers alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDPMScheduler, DiffusionPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from blocks import DeltaConvBlock, NeighborhoodAttention, Site, TokenMixer
from callbacks import ExportAtEnd, SampleGrid, TrainableEMA
from lightning_modules import AttentionDistillation, DenoiserTraining
from lightning_modules.denoiser_training import Conditions
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.export import write as exporting
from sparsight.diffusion.export.delta import mount
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.export.standalone import reference_output
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.students.load import load_student
from sparsight.diffusion.surgery.replace import replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.train.stages import Stage
from sparsight.publish.checkpoint import restore
from sparsight.publish.export import export
from tests import tiny
from tests.tiny_sd3 import save_sd3_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
WAVE = '''
"""A user's own mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blocks.base import FeatureMixer, Grid, Site


class Wave(FeatureMixer):
    """A linear map times a cosine of the row."""

    def __init__(self, site: Site, *, turns: float = 1.0) -> None:
        super().__init__(site)
        self.turns = turns
        self.linear = nn.Linear(site.channels, site.channels)
        self.register_buffer("strength", torch.ones(1))

    def flops(self, grid: Grid) -> int:
        return 2 * grid.tokens * self.site.channels**2

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        row_N = torch.arange(grid.tokens, device=hidden_BNC.device) // grid.width
        wave_N1 = torch.cos(self.turns * row_N / grid.height)[:, None].to(hidden_BNC.dtype)
        return self.linear(hidden_BNC) * wave_N1 * self.strength
'''


def mixers(wave: type[TokenMixer], site: Site) -> TokenMixer:
    """A user's mixer first, one with the teacher's projections next."""
    return wave(site, turns=0.5) if ".0." in site.path else NeighborhoodAttention(site, kernel_size=3)  # type: ignore[call-arg]


def distillation(folder: Path) -> AttentionDistillation:
    import wave_mixer

    torch.manual_seed(0)
    stages = [Stage("layerwise", 2, warmup_steps=1)]
    return AttentionDistillation(
        str(folder / "base"),
        partial(mixers, wave_mixer.Wave),
        stages,
        trained={"init_samples": 0, "projections": True},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A distillation that exports itself at its end, with its checkpoint."""
    root = tmp_path_factory.mktemp("exports")
    (root / "wave_mixer.py").write_text(WAVE)
    sys.path.append(str(root))
    tiny.save_pixel_pipeline(root / "base")
    (root / "base" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    module = distillation(root)
    trainer = SparsightTrainer(
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        val_check_interval=1,
        limit_val_batches=1,
        callbacks=[TrainableEMA(0.5), SampleGrid(labels=[0, 1], every_n_steps=100), ExportAtEnd()],  # to "student"
    )
    trainer.fit(module, tiny.image_data(root))
    (root / "config.yaml").write_text("model: {}\ndata: {class_path: datamodules.ImageDataModule}\n")
    yield root, module
    sys.path.remove(str(root))


def answer(denoiser: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return denoiser(**inputs, return_dict=False)[0]


@pytest.mark.slow
def test_the_run_exports_itself_and_stays_as_it_is(folder: Any) -> None:
    root, module = folder
    assert {p.name for p in (root / "student").iterdir()} >= {"README.md", "model_index.json", "delta", "transformer"}
    assert not list(root.glob(".student.*")), "nothing unfinished may stay"
    set_mode(module.shells.values(), Mode.LAYERWISE)
    module.train()
    inputs, expected = reference_output(module.denoiser)
    for shell in module.shells.values():
        assert shell.mode is Mode.LAYERWISE and shell.output is None and shell.mixer.training
        assert all(p.requires_grad and p.dtype == torch.float32 for p in shell.mixer.parameters())
    loaded = load_pipeline(str(root / "student")).transformer
    torch.testing.assert_close(answer(loaded, inputs), expected)
    halved = load_pipeline(str(root / "student"), variant="fp16").transformer
    torch.testing.assert_close(answer(halved, inputs), expected, rtol=0.02, atol=0.02)
    assert (answer(halved, inputs) - expected).abs().max() > 1e-4, "half precision is what was loaded"


def test_the_card_says_what_was_done(folder: Any) -> None:
    card = ModelCard.load(folder[0] / "student" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "license": "cc-by-4.0",
        "tags": ["sparsight", "attention-distillation"],
    }
    last = folder[0] / "samples" / "step_0000002.png"
    assert (folder[0] / "student" / "samples.png").read_bytes() == last.read_bytes()
    for text in (
        "# student",
        "](samples.png)",
        "2 of its 2 self-attentions",
        "distilled from `base`",
        "trust_remote_code=True",
        'mount(load_pipeline("base"), "student/delta")',
        "| Wave | `turns=0.5` | `transformer_blocks.0.attn1` |",
        "| layerwise | 2 | 0.0003, constant_with_warmup |",
        "Optimiser steps taken: 2",
        "Weights: moving average",
        "| val/output_relative_l2 |",
        "step 2",
        f"torch {version('torch')}",
    ):
        assert text in card.text, text
    assert str(folder[0]) not in card.text
    for path in (folder[0] / "student").rglob("*.json"):
        assert str(folder[0]) not in path.read_text(), path


def test_mounting_the_delta_gives_the_student(folder: Any) -> None:
    root, module = folder
    inputs, expected = reference_output(module.denoiser)
    delta = root / "student" / "delta"
    names = set(load_file(delta / "mixers.safetensors"))
    assert "transformer_blocks.0.attn1.mixer.strength" in names, "buffers are part of it"
    assert "transformer_blocks.1.attn1.to_q.weight" in names and not any(".ff." in name for name in names)
    pipeline = mount(load_pipeline(str(root / "base")), delta)
    torch.testing.assert_close(answer(pipeline.transformer, inputs), expected)
    with pytest.raises(ValueError, match="is not the teacher"):
        mount(tiny.dit(num_layers=1), delta)
    with pytest.raises(FileNotFoundError, match=r"has no plan\.json"):
        mount(pipeline, root / "student")


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "format"])
def test_a_damaged_delta_is_refused_and_changes_nothing(folder: Any, tmp_path: Path, damage: str) -> None:
    source = folder[0] / "student" / "delta"
    tensors = load_file(source / "mixers.safetensors")
    plan = json.loads((source / "plan.json").read_text())
    name = "transformer_blocks.0.attn1.mixer.linear.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["other"] = torch.zeros(1)
    elif damage == "shape":
        tensors[name] = torch.zeros(3, 3)
    else:
        plan["format"] = 99
    save_file(tensors, tmp_path / "mixers.safetensors")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    denoiser = load_pipeline(str(folder[0] / "base")).transformer
    keys = list(denoiser.state_dict())
    with pytest.raises(ValueError, match="99" if damage == "format" else f"{damage}|of another shape"):
        mount(denoiser, tmp_path)
    assert list(denoiser.state_dict()) == keys


@pytest.mark.usefixtures("reload_here")
def test_raw_weights_of_a_checkpoint_are_exported_by_the_verb(folder: Any, tmp_path: Path) -> None:
    root, trained = folder
    checkpoint = next((root / "checkpoints").glob("*.ckpt"))
    saved = torch.load(checkpoint, weights_only=True)
    measured = tmp_path / "metrics.json"
    measured.write_text(json.dumps([{"name": "fd", "value": 12.5, "protocol": "1 000 images"}]))
    module = distillation(root)
    out = SparsightTrainer(logger=False, accelerator="cpu", default_root_dir=tmp_path).export(
        module, ckpt_path=str(checkpoint), weights="raw", fp16=False, metrics=str(measured), licence="apache-2.0"
    )
    assert out == tmp_path / "export"
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not (out / "transformer" / "diffusion_pytorch_model.fp16.safetensors").exists()
    name = "transformer_blocks.0.attn1.mixer.linear.weight"
    raw = saved["state_dict"]["denoiser.transformer_blocks.0.attn1.student.mixer.linear.weight"]
    assert torch.equal(weights[name], raw)
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0" and "| fd | 12.5 | 1 000 images |" in card.text
    assert yaml.safe_load((out / "training.yaml").read_text())["data"]["class_path"] == "datamodules.ImageDataModule"
    restore(module, checkpoint, weights="ema")
    average = module.shells["transformer_blocks.0.attn1"].student.mixer.linear.weight
    assert torch.equal(average, trained.shells["transformer_blocks.0.attn1"].student.mixer.linear.weight)
    assert not torch.equal(average, raw)


def test_a_student_that_is_trained_on_stays_a_student(folder: Any, tmp_path: Path) -> None:
    module = DenoiserTraining(pretrained=str(folder[0] / "student"), trainable=["*.mixer.*"])
    with torch.no_grad():
        module.denoiser.transformer_blocks[0].attn1.mixer.linear.weight.add_(1.0)
    write_pipeline(module.diffusion, tmp_path / "polished", fp16=False)
    inputs, expected = reference_output(module.denoiser)
    polished = load_pipeline(str(tmp_path / "polished")).transformer
    torch.testing.assert_close(answer(polished, inputs), expected)
    before = load_pipeline(str(folder[0] / "student")).transformer
    assert not torch.allclose(answer(before, inputs), expected)


def test_a_student_of_other_code_is_loaded_with_a_warning_and_one_of_other_weights_not(
    folder: Any, tmp_path: Path
) -> None:
    copied = shutil.copytree(folder[0] / "student" / "transformer", tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_older.StudentDiTTransformer2DModel"
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="modeling_older"):
        load_student(copied)
    (copied / "diffusion_pytorch_model.safetensors").unlink()
    save_file({"other": torch.zeros(1)}, copied / "diffusion_pytorch_model.safetensors")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="do not fit the installed mixers"):
        load_student(copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "transformer" / WEIGHTS), f"transformer/{WEIGHTS} is cut off or damaged .*: copy it again"),
        (lambda f: (f / "transformer" / WEIGHTS).unlink(), "transformer holds no weights, such as"),
        (lambda f: (f / "transformer/config.json").unlink(), "transformer holds weights, but no config.json"),
    ],
)
def test_files_of_a_student_that_are_cut_off_or_missing_are_named(
    folder: Any, tmp_path: Path, damage: Any, message: str
) -> None:
    copied = Path(shutil.copytree(folder[0] / "student", tmp_path / "copy"))
    for half in copied.glob("transformer/*.fp16.*"):
        half.unlink()
    damage(copied)
    with pytest.raises(ConfigurationError, match=message):
        load_pipeline(str(copied))


def test_a_delta_that_is_cut_off_is_named_and_the_folder_around_it_too(folder: Any, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder[0] / "student", tmp_path / "copy"))
    with pytest.raises(FileNotFoundError, match=r"no delta folder: .*; did you mean .*copy/delta"):
        mount(tiny.dit(), copied)
    cut(copied / "delta" / "mixers.safetensors")
    teacher = load_pipeline(str(folder[0] / "base"))
    with pytest.raises(ConfigurationError, match=r"delta/mixers.safetensors is cut off or damaged .*: copy it again"):
        mount(teacher, copied / "delta")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def test_checkpoints_that_do_not_fit_are_refused(folder: Any, tmp_path: Path) -> None:
    root, _ = folder
    checkpoint = next((root / "checkpoints").glob("*.ckpt"))
    saved = torch.load(checkpoint, weights_only=True)
    module = distillation(root)
    torch.save(saved | {"callbacks": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="--weights raw"):
        restore(module, tmp_path / "plain.ckpt", weights="ema")
    torch.save(saved | {"sparsight": saved["sparsight"] | {"teacher_hash": "0"}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="another teacher"):
        restore(module, tmp_path / "other.ckpt", weights="raw")
    with pytest.raises(FileNotFoundError):
        restore(module, tmp_path / "none.ckpt", weights="raw")


@pytest.mark.usefixtures("reload_here")
def test_a_mismatch_leaves_nothing_behind(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_wrong(denoiser: Any) -> tuple[dict[str, Any], torch.Tensor]:
        inputs, expected = reference_output(denoiser)
        return inputs, expected * 1.001

    monkeypatch.setattr(exporting, "reference_output", slightly_wrong)
    with pytest.raises(RuntimeError, match="answers differently after reloading"):
        export(folder[1], tmp_path / "out", fp16=False)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_overwritten_unasked(folder: Any, tmp_path: Path) -> None:
    root, module = folder
    with pytest.raises(ValueError, match="exists"):
        export(module, root / "student")
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="no earlier export"):
        export(module, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="exists"):
        ExportAtEnd(str(root / "student")).setup(None, module, "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has neither a diffusion nor an image-text model"):
        export(torch.nn.Linear(2, 2), tmp_path / "new")


def teacher_training() -> DenoiserTraining:
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", clip_sample=False)
    names = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
    module = DenoiserTraining(denoiser=tiny.dit(), noise_scheduler=scheduler, conditions=Conditions(names))
    tiny.awake(module.denoiser)
    return module


@pytest.mark.slow
def test_plain_diffusers_loads_all_of_it(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, distilled = folder
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(root / "modules"))
    monkeypatch.syspath_prepend(str(root / "modules"))
    stable = DiffusionModel.from_pretrained(str(tiny.save_sd_pipeline(root / "sd_base")))
    replace(stable.denoiser, partial(DeltaConvBlock, kernel_size=3))
    write_pipeline(stable, root / "sd", fp16=True)
    joint = DiffusionModel.from_pretrained(str(save_sd3_pipeline(root / "joint_base")))
    replace(joint.denoiser, partial(NeighborhoodAttention, kernel_size=3))
    write_pipeline(joint, root / "joint", fp16=True)
    trained = teacher_training()
    write_pipeline(trained.diffusion, root / "teacher", fp16=False)
    expected = {}
    for name, denoiser in {
        "student": distilled.denoiser,
        "sd": stable.denoiser,
        "joint": joint.denoiser,
        "teacher": trained.denoiser,
    }.items():
        inputs, wanted = reference_output(denoiser)
        expected |= {f"{name}.{key}": value.contiguous() for key, value in inputs.items()} | {f"{name}.answer": wanted}
        own = load_pipeline(str(root / name))
        torch.testing.assert_close(answer(getattr(own, "transformer", None) or own.unet, inputs), wanted)
    teacher = load_pipeline(str(root / "teacher"))
    assert teacher.config.id2label["4"] == "coat"
    torch.manual_seed(0)
    images = teacher(class_labels=["coat", 3], num_inference_steps=2, output_type="pt").images
    expected["images"] = images.contiguous()
    save_file(expected, root / "expected.safetensors")
    for name in ("student", "sd", "joint"):
        DiffusionPipeline.from_pretrained(root / name, trust_remote_code=True).save_pretrained(root / f"{name}_again")

    script = Path(__file__).with_name("plain_diffusers.py")
    surroundings = os.environ | {"HF_MODULES_CACHE": str(root / "fresh")}
    process = subprocess.run(
        [sys.executable, str(script), str(root)], cwd=root / "sd", env=surroundings, capture_output=True, text=True
    )
    assert process.returncode == 0 and "all loaded" in process.stdout, process.stderr
