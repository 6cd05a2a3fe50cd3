"""An export says what was trained and nothing else; what should have been trained and was not is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDPMScheduler

from blocks import DeltaConvBlock, NeighborhoodAttention, Site, SoftmaxAttention
from callbacks import ExportAtEnd
from lightning_modules import AttentionDistillation, DenoiserTraining, LVLMEvaluation, SparseLayerTuning
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.train.stages import Stage
from sparsight.lvlm.scores import BlockInfluence
from sparsight.lvlm.surgery.retire import LayerPruning
from sparsight.lvlm.surgery.selection import Explicit
from sparsight.lvlm.train.stages import TuningStage
from sparsight.lvlm.train.trained import LoRA
from sparsight.publish.checkpoint import restore, saved_config
from sparsight.publish.export import base_of, export
from tests import tiny
from tests.tiny_lvlm import save_tiny_lvlm

STAGES = [Stage("layerwise", 3), Stage("end_to_end", 4)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path_factory.mktemp("training") / "base"))


def distillation(teacher: str, mixer: Any = DeltaConvBlock) -> AttentionDistillation:
    return AttentionDistillation(teacher, mixer, STAGES, trained={"init_samples": 0})


def trainer(folder: Path, **options: Any) -> SparsightTrainer:
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return SparsightTrainer(default_root_dir=folder, limit_val_batches=1, **quiet | options)


def saved(module: Any, path: Path, *, step: int) -> str:
    """A checkpoint as a run of so many steps would have left it."""
    module.has_learned = step > 0
    checkpoint: dict[str, Any] = {"global_step": step, "state_dict": module.state_dict(), "hyper_parameters": {}}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def test_an_untrained_student_is_refused_by_everything_that_exports(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher)
    beginning = saved(module, tmp_path / "zero.ckpt", step=0)
    for attempt in (
        lambda: export(module, tmp_path / "out"),
        lambda: trainer(tmp_path).export(module, output=str(tmp_path / "out")),
        lambda: trainer(tmp_path).export(module, ckpt_path=beginning, weights="raw", output=str(tmp_path / "out")),
        lambda: trainer(tmp_path).predict(module, datamodule=tiny.image_data(tmp_path)),
    ):
        with pytest.raises(ConfigurationError, match=r"has changed its DeltaConvBlock.*--ckpt_path.*--untrained"):
            attempt()
    for few in ({"limit_train_batches": 0, "max_epochs": 1}, {"max_steps": 1}):
        with pytest.raises(ConfigurationError, match=r"ExportAtEnd exports nothing: .*DeltaConvBlock\. Train for more"):
            trainer(tmp_path, callbacks=[ExportAtEnd()], **few).fit(distillation(teacher), tiny.image_data(tmp_path))
    for nothing in ({"max_steps": 0}, {"max_epochs": 0}):
        with pytest.raises(ConfigurationError, match="max_steps or max_epochs is 0"):
            trainer(tmp_path, callbacks=[ExportAtEnd()], **nothing).fit(module, tiny.image_data(tmp_path))
    assert not (tmp_path / "out").exists() and not (tmp_path / "student").exists()


@pytest.mark.usefixtures("reload_here")
def test_an_untrained_student_that_is_wanted_says_so(teacher: str, tmp_path: Path) -> None:
    folder = trainer(tmp_path).export(distillation(teacher), output=str(tmp_path / "out"), untrained=True, fp16=False)
    card = (folder / "README.md").read_text()
    assert "**Not trained**: the student is untrained" in card and "Do not use it for pictures" in card
    for claim in ("distil", "layerwise", "end_to_end", "Optimiser steps", "sparsight fit"):
        assert claim not in card, claim
    assert not (folder / "training.yaml").exists()


@pytest.mark.parametrize("mixer", [SoftmaxAttention, partial(NeighborhoodAttention, kernel_size=3)])
def test_a_student_without_parameters_needs_no_training(teacher: str, mixer: Any) -> None:
    assert distillation(teacher, mixer).untrained() is None


def test_one_site_that_needs_training_is_enough_and_sites_that_wait_do_not_count(teacher: str) -> None:
    def mixed(site: Site) -> Any:
        return DeltaConvBlock(site) if ".1." in site.path else SoftmaxAttention(site)

    module = distillation(teacher, mixed)
    assert "changed its DeltaConvBlock" in str(module.untrained()) and "Softmax" not in str(module.untrained())
    module.retire(module.sites()[:1])
    assert module.untrained() is None


@pytest.mark.parametrize(
    ("step", "told"), [(1, [("layerwise", 1)]), (3, [("layerwise", 3)]), (5, [("layerwise", 3), ("end_to_end", 2)])]
)
def test_a_checkpoint_proves_its_steps_and_stages(teacher: str, tmp_path: Path, step: int, told: Any) -> None:
    module = distillation(teacher)
    run = restore(module, saved(module, tmp_path / "some.ckpt", step=step), weights="raw")
    assert run.steps == step == module.steps_taken and module.untrained() is None
    assert [(stage.objective, stage.steps) for stage in run.stages] == told
    assert run.weights == "those of the last step" and run.config is None


def test_a_trained_module_is_trained_for_every_trainer(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher)
    trainer(tmp_path, max_steps=2).fit(module, tiny.image_data(tmp_path))
    assert module.steps_taken == 2
    other = trainer(tmp_path)
    other.validate(module, tiny.image_data(tmp_path), verbose=False)
    assert module.steps_taken == 2 and "val/untrained" not in other.callback_metrics


def test_measuring_an_untrained_student_says_so(teacher: str, tmp_path: Path) -> None:
    measuring = trainer(tmp_path)
    with pytest.warns(UserWarning, match=r"student is untrained.*--ckpt_path"):
        measuring.validate(distillation(teacher), tiny.image_data(tmp_path), verbose=False)
    assert measuring.callback_metrics["val/untrained"] == 1


def test_a_configuration_of_another_run_is_no_proof(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    stage = {"objective": "layerwise", "steps": 3, "lr": 1e-4}
    options = {"stages": [stage], "teacher": "here", "trained": {"init_samples": 4}}
    config = {"model": {"class_path": "AttentionDistillation", "init_args": {**deepcopy(options), "teacher": "/there"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert saved_config(checkpoint, options) is not None
    config["model"]["init_args"]["stages"][0]["steps"] = 4  # type: ignore[index]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match="is not that of"):
        assert saved_config(checkpoint, options) is None


def test_a_denoiser_that_took_no_step_is_refused(teacher: str, tmp_path: Path) -> None:
    fresh = DenoiserTraining(denoiser=tiny.dit(), noise_scheduler=DDPMScheduler())
    for module, told in ((fresh, "it is random"), (DenoiserTraining(pretrained=teacher), f"it is that of {teacher}")):
        with pytest.raises(ConfigurationError, match="no optimiser step has changed") as caught:
            export(module, tmp_path / "out")
        assert told in str(caught.value)


# ------------------------------------------------------------------------------------------ image-text models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("training") / "base"
    save_tiny_lvlm(folder, "fast_vlm")
    return str(folder)


def tuning(base: str, **options: Any) -> SparseLayerTuning:
    stages = [TuningStage(2, train=["projector"]), TuningStage(2, train=["layers"])]
    return SparseLayerTuning(base, stages, layers=Explicit([1, 4]), **options)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@pytest.mark.usefixtures("reload_here")
def test_an_image_text_model_tells_what_was_tuned(base: str, tmp_path: Path, lora: LoRA | None) -> None:
    module = tuning(base, lora=lora)
    with pytest.raises(
        ConfigurationError, match=r"as it was loaded: .* changed its (layers and projector|projector and layers):"
    ):
        export(module, tmp_path / "out")
    folder = export(module, tmp_path / "out", untrained=True)
    record, card = json.loads((folder / "sparsight.json").read_text()), (folder / "README.md").read_text()
    assert record["tuned_layers"] == record["trained"] == record["tuned_layers_now"] == [] and not record["selection"]
    assert "**Not trained**" in card and "0 of 6 decoder layers tuned" in card and not (folder / "adapter").exists()


def steps(module: SparseLayerTuning, *, lr: float, took: bool = True) -> None:
    """One optimiser step of the module's current stage, without its arithmetic."""
    part = module.stage.train[0]
    optimizer = torch.optim.SGD([{"params": module._parameters_of(part), "lr": lr, "name": part}])
    module.guard.may_step = lambda *given, **options: took  # type: ignore[method-assign]
    module._trainer = SimpleNamespace(precision_plugin=None, global_step=0)  # type: ignore[assignment]
    module.on_before_optimizer_step(optimizer)
    module._trainer = None


def test_only_what_an_optimiser_step_changed_was_trained(base: str, tmp_path: Path) -> None:
    module = tuning(base)
    steps(module, lr=0.0)
    steps(module, lr=0.1, took=False)
    assert module.trained_so_far() == module.learned_layers() == [] and not module.has_learned, "warm-up, or left out"
    steps(module, lr=0.1)
    assert module.trained_so_far() == ["projector"] and module.learned_layers() == [] and module.has_learned
    module._stage_index = 1
    module._active = [4]  # as a rotation would have it
    steps(module, lr=0.1)
    again = tuning(base)
    again.on_load_checkpoint(torch.load(saved(module, tmp_path / "some.ckpt", step=3), weights_only=True))
    for one in (module, again):
        assert sorted(one.trained_so_far()) == ["layers", "projector"] and one.learned_layers() == [4]


@pytest.mark.parametrize(
    ("step", "trained", "layers"), [(0, [], []), (2, ["projector"], []), (3, ["layers", "projector"], [1, 4])]
)
def test_of_a_checkpoint_of_an_earlier_version_the_plan_tells(
    base: str, tmp_path: Path, step: int, trained: list[str], layers: list[int]
) -> None:
    module = tuning(base)
    checkpoint = torch.load(saved(module, tmp_path / "some.ckpt", step=step), weights_only=True)
    del checkpoint["sparsight"]["learned"], checkpoint["has_learned"]
    module.on_load_checkpoint(checkpoint)
    assert sorted(module.trained_so_far()) == trained and module.learned_layers() == layers


def test_layers_that_have_left_need_no_training(base: str) -> None:
    module = tuning(base, prune=LayerPruning(BlockInfluence()))
    assert module.untrained() is not None
    module.retired.set([2])
    assert module.untrained() is None


def test_what_trains_nothing_has_nothing_to_export(base: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LVLMEvaluation has neither"):
        export(LVLMEvaluation(base), tmp_path / "out")


def test_an_export_says_which_files_of_the_base_were_meant(teacher: str, base: str) -> None:
    for loading in ({"revision": "v2"}, {}):
        pruned = LVLMEvaluation(base, loading=loading)  # type: ignore[arg-type]
        student = AttentionDistillation(teacher, DeltaConvBlock, STAGES, loading=loading)  # type: ignore[arg-type]
        polished = DenoiserTraining(teacher, loading=loading)  # type: ignore[arg-type]
        for module in (pruned, student, polished):
            found = base_of(module)
            assert found is not None and (found.revision, found.variant) == (loading.get("revision"), None)
