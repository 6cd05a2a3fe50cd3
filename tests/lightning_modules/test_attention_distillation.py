"""Distillation: gradients, frozen teacher, stages, exact resume."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from blocks import DeltaConvBlock, Merge, NeighborhoodAttention, SoftmaxAttention
from callbacks import TrainableEMA
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.model.timesteps import Timesteps
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.train.stages import LOSS_PRESETS, LossTerms, Stage, check_guided
from sparsight.diffusion.train.timestep_weights import min_snr_weight
from tests import tiny
from tests.tiny_distillation import distillation, trainer
from tests.tiny_rows import few


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path / "teacher"))


def noised_batch(module: AttentionDistillation, **extra: Any) -> dict[str, Any]:
    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.arange(4), "index": torch.arange(4)}
    return module.noised(batch, step=0, condition_dropout=0.0) | extra


TERMS = ["layerwise", "to_teacher", "to_target", "guided", "site_output", "site_residual", "site_plain"]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("timestep_weight", ["none", "min_snr", "paper"])
def test_every_loss_term_reaches_every_mixer_and_nothing_else(teacher: str, term: str, timestep_weight: str) -> None:
    off = {"to_teacher": 0.0, "to_target": 0.0, "site": 0.0, "timestep_weight": timestep_weight}
    on = {
        "layerwise": {},
        "to_teacher": {"to_teacher": 1.0},
        "to_target": {"to_target": 1.0},
        "guided": {"guided": 1.0},
        "site_output": {"site": 1.0},
        "site_residual": {"site": 1.0, "site_on": "residual"},
        "site_plain": {"site": 1.0, "site_normalised": False},
    }[term]
    stage = Stage("layerwise" if term == "layerwise" else "end_to_end", 1, loss=LossTerms(**off | on))
    module = distillation(teacher, [stage])
    noised = noised_batch(module)
    if term == "layerwise":
        terms = module.distiller.layerwise(noised)
    else:
        terms = module.distiller.end_to_end(noised, module.stage.terms)
    assert len(terms) == 1
    next(iter(terms.values())).backward()
    for name, parameter in module.named_parameters():
        inside = ".student." in name
        assert parameter.requires_grad == inside
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == inside, name


@pytest.mark.parametrize("timestep_weight", ["none", "min_snr"])
def test_a_guided_loss_is_of_what_samples_are_drawn_with(teacher: str, timestep_weight: Any) -> None:
    terms = LossTerms(to_teacher=0.0, guided=2.0, site=0.0, timestep_weight=timestep_weight)
    sampling = Sampling(2, guidance_scale=3.0)
    module = distillation(teacher, [Stage("end_to_end", 1, loss=terms)], sampling=sampling, condition_dropout=1.0)
    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.arange(4), "index": torch.arange(4)}
    noised = module._noised_in_stage(batch, step=0)
    assert torch.equal(noised["cond"]["class_labels"], torch.arange(4)), "no sample loses its condition"
    without = noised | {"cond": noised["uncond"]}
    predict = module.distiller.predict
    error, lost = (predict(each, Mode.STUDENT) - predict(each, Mode.TEACHER) for each in (noised, without))
    process = module.diffusion.process
    weight = min_snr_weight(process.snr(noised["level"]), terms.gamma, process.prediction_type)
    weight = weight if timestep_weight == "min_snr" else torch.ones(4)
    expected = (weight * (lost + 3.0 * (error - lost)).square().flatten(1).mean(1)).mean()
    losses = module.distiller.end_to_end(noised, terms)
    torch.testing.assert_close(losses, {"guided": 2.0 * expected})


def test_a_guided_loss_without_guidance_of_two_passes_is_refused(teacher: str) -> None:
    stages = [Stage("end_to_end", 1, loss=LossTerms(guided=1.0))]
    with pytest.raises(ConfigurationError, match=r"at sampling\.guidance_scale 1 is what to_teacher is"):
        distillation(teacher, stages, sampling=Sampling(2, guidance_scale=1.0))
    with pytest.raises(ConfigurationError, match="takes guidance as an input"):
        check_guided(stages, scale=2.0, is_input=True)
    check_guided([Stage("layerwise", 1, loss=LossTerms(guided=1.0))], scale=1.0, is_input=True)


def test_presets_hold_what_was_published() -> None:
    paper, released = LOSS_PRESETS["paper"], LOSS_PRESETS["released"]
    assert (paper.to_teacher, paper.to_target, paper.site, paper.gamma) == (1.0, 1.0, 0.001, 5.0)
    assert (paper.timestep_weight, paper.site_on) == ("paper", "output")
    assert (released.timestep_weight, released.site_on, released.site) == ("none", "residual", 0.001)


def test_training_leaves_the_teacher_bitwise_and_lowers_the_error(teacher: str, tmp_path: Path) -> None:
    stages = [Stage("layerwise", 30, warmup_steps=1, lr=1e-2)]
    module = distillation(teacher, [*stages, Stage("end_to_end", 4, warmup_steps=1)])
    before = copy.deepcopy({n: p for n, p in module.denoiser.named_parameters() if ".student." not in n})
    noised = noised_batch(module)
    start = {path: float(error) for path, error in site_errors(module, noised).items()}
    fit = trainer(tmp_path)
    fit.fit(module, tiny.image_data(tmp_path))
    assert fit.global_step == 34
    for name, parameter in module.denoiser.named_parameters():
        if ".student." not in name:
            assert torch.equal(parameter, before[name]), name
    after = {path: float(error) for path, error in site_errors(module, noised).items()}
    assert all(after[path] < 0.5 * start[path] for path in start), (start, after)


def test_a_warm_up_that_outlasts_its_stage_is_told(teacher: str) -> None:
    module = distillation(teacher, [Stage("layerwise", 11, warmup_steps=100)])
    with pytest.warns(
        UserWarning, match="warmup_steps is 100 and stage 1 of 1 .* no higher than 10% of lr: give fewer"
    ):
        module.configure_optimizers()


def test_layerwise_loss_vanishes_when_the_student_can_be_the_teacher(teacher: str) -> None:
    whole_grid = partial(NeighborhoodAttention, kernel_size=4)
    for mixer in (SoftmaxAttention, whole_grid):
        module = distillation(teacher, mixer=mixer)
        errors = site_errors(module, noised_batch(module))
        assert all(float(error) < 1e-9 for error in errors.values())
    narrow = distillation(teacher, mixer=partial(NeighborhoodAttention, kernel_size=2))
    assert all(float(error) > 1e-6 for error in site_errors(narrow, noised_batch(narrow)).values())


def test_two_training_forwards_with_equal_input_are_equal(teacher: str) -> None:
    module = distillation(teacher)
    module.train()
    assert not module.denoiser.training
    torch.manual_seed(5)
    noised = noised_batch(module)
    first, second = site_errors(module, noised), site_errors(module, noised)
    assert all(torch.equal(first[path], second[path]) for path in first)


def test_site_weights_turn_sites_up_and_off(teacher: str) -> None:
    first, second = "transformer_blocks.0.attn1", "transformer_blocks.1.attn1"
    module = distillation(teacher, site_weights={"*.0.attn1": 3.0, "*.1.*": 0.0})
    assert module.site_weights == {first: 3.0, second: 0.0}
    errors = site_errors(module, noised_batch(module))
    torch.testing.assert_close(module.distiller._weighted(errors, mean=True), errors[first])
    torch.testing.assert_close(module.distiller._weighted(errors, mean=False), 3 * errors[first])
    assert distillation(teacher, site_weights={"*.1.*": 2.0}).site_weights == {first: 1.0, second: 2.0}


def test_impossible_targets_are_refused_before_the_first_step(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher, [Stage("layerwise", 5), Stage("end_to_end", 1, loss="released")])
    batch = {"xt": torch.zeros(4, 1, 8, 8), "timestep": torch.zeros(4), "index": torch.arange(4)}
    with pytest.raises(ConfigurationError, match="to_target needs clean samples"):
        module.on_train_batch_start(batch, 0)
    module = distillation(teacher, [Stage("layerwise", 1), Stage("end_to_end", 1, timesteps=Timesteps("logit_normal"))])
    with pytest.raises(ConfigurationError, match="timesteps of a stage draws noise levels for clean samples"):
        module.on_train_batch_start(batch, 0)


def site_errors(module: AttentionDistillation, noised: dict[str, Any]) -> dict[str, torch.Tensor]:
    module.distiller.layerwise(noised)
    return dict(zip(module.shells, module.distiller.errors_S, strict=True))


class Watch(Callback):
    """Notes what the module and its optimiser hold after every step."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.states[trainer.global_step] = {k: v.clone() for k, v in pl_module.state_dict().items()}


# in the first stage, where it ends, in the second; accumulation only moves batches together
@pytest.mark.parametrize(("accumulate", "stop"), few(itertools.product([1, 2], [1, 3, 5]), (1, 3)))
def test_resume_is_bitwise_from_any_step(teacher: str, tmp_path: Path, stop: int, accumulate: int) -> None:
    data = partial(tiny.image_data, tmp_path, batch_size=4, count=20)
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    whole = Watch()
    trainer(tmp_path, callbacks=[whole, TrainableEMA(0.9)], enable_checkpointing=False, **options).fit(
        distillation(teacher), data()
    )
    saved = tmp_path / "saved.ckpt"
    saver = SaveAt(stop, saved)
    trainer(tmp_path, callbacks=[saver, TrainableEMA(0.9)], enable_checkpointing=False, **options).fit(
        distillation(teacher), data()
    )
    resumed, ema = Watch(), TrainableEMA(0.9)
    again = trainer(tmp_path, callbacks=[resumed, ema], enable_checkpointing=False, **options)
    again.fit(distillation(teacher), data(), ckpt_path=saved)
    assert sorted(resumed.states.keys() - {stop}) == list(range(stop + 1, 7))
    for step, state in resumed.states.items():
        for name, value in state.items():
            assert torch.equal(value, whole.states[step][name]), (step, name)


def test_a_run_that_is_over_goes_on_with_a_stage_behind_its_own(teacher: str, tmp_path: Path) -> None:
    """As one that was planned so; a longer stage is refused with what to do instead."""
    first, last = Stage("layerwise", 3, warmup_steps=1), Stage("end_to_end", 3, warmup_steps=1)
    data = partial(tiny.image_data, tmp_path, batch_size=4, count=20)
    planned, resumed, saved = Watch(), Watch(), tmp_path / "saved.ckpt"
    quiet: dict[str, Any] = {"enable_checkpointing": False}
    trainer(tmp_path, callbacks=[planned], **quiet).fit(distillation(teacher, [first, last, last]), data())
    trainer(tmp_path, callbacks=[SaveAt(6, saved)], **quiet).fit(distillation(teacher, [first, last]), data())
    again = trainer(tmp_path, callbacks=[resumed], **quiet)
    again.fit(distillation(teacher, [first, last, last]), data(), ckpt_path=saved)
    assert again.global_step == 9
    for name, value in resumed.states[9].items():
        assert torch.equal(value, planned.states[9][name]), name
    longer = distillation(teacher, [first, replace(last, steps=6)])
    with pytest.raises(ConfigurationError, match=r"stages\.1\.steps: 3 .*, 6 .*\n\(stages: .* add one behind them\)"):
        trainer(tmp_path, **quiet).fit(longer, data(), ckpt_path=saved)
    with pytest.raises(ConfigurationError, match=r"has 1 of the 2 stages that .*saved\.ckpt was trained in: give them"):
        trainer(tmp_path, **quiet).fit(distillation(teacher, [first]), data(), ckpt_path=saved)


class SaveAt(Callback):
    """Saves a checkpoint after one step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_checkpoints_are_small_and_refuse_another_teacher(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher)
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    fit.fit(module, tiny.image_data(tmp_path))
    path = tmp_path / "one.ckpt"
    fit.save_checkpoint(path)
    names = set(torch.load(path, weights_only=True)["state_dict"])
    assert names and all(".student.mixer." in name for name in names)
    other = tiny.save_pixel_pipeline(tmp_path / "other", attention_bias=False)
    with pytest.raises(ValueError, match="another teacher"):
        trainer(tmp_path).fit(distillation(str(other)), tiny.image_data(tmp_path), ckpt_path=path)
    larger = distillation(teacher, mixer=partial(DeltaConvBlock, preset="released_pixart", kernel_size=5))
    with pytest.raises(ValueError, match="other mixers"):
        trainer(tmp_path).fit(larger, tiny.image_data(tmp_path), ckpt_path=path)


def test_a_teacher_in_bfloat16_trains_float32_mixers(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher, loading={"dtype": "bfloat16"})
    before = {n: p.clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer(tmp_path, precision="bf16-mixed", enable_checkpointing=False).fit(module, tiny.image_data(tmp_path))
    for name, parameter in module.named_parameters():
        if name in before:
            assert parameter.dtype == torch.float32
            assert not torch.equal(parameter, before[name]), name
        else:
            assert parameter.dtype == torch.bfloat16


def test_no_stage_and_unknown_sites_are_refused(teacher: str) -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        AttentionDistillation(teacher, DeltaConvBlock, [])
    with pytest.raises(ValueError, match="steps is 0; allowed: 1 or more"):
        Stage("layerwise", 0)
    with pytest.raises(ValueError, match="loss is 'best'; allowed: 'default', 'paper', 'released'"):
        Stage("end_to_end", 1, loss="best")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AttentionDistillation("./nowhere", DeltaConvBlock, [Stage("layerwise", 1)])


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_all_weights_in_half_precision_are_refused_with_the_remedy(
    teacher: str, tmp_path: Path, precision: Any
) -> None:
    half = {"bf16-true": "bfloat16", "16-true": "float16"}[precision]
    mixed = precision.replace("true", "mixed")
    runner = trainer(tmp_path, precision=precision, max_steps=1)
    with pytest.raises(ConfigurationError, match=f"set it to {mixed}, and model.loading.dtype to {half}"):
        runner.fit(distillation(teacher), tiny.image_data(tmp_path))
    training = DenoiserTraining(teacher, schedule={"warmup_steps": 1})
    with pytest.raises(ConfigurationError, match=f"set it to {mixed}$"):
        trainer(tmp_path, precision=precision).validate(training, tiny.image_data(tmp_path), verbose=False)


def test_mixers_that_hardly_learn_are_told(teacher: str, tmp_path: Path) -> None:
    data = tiny.image_data(tmp_path)
    module = distillation(teacher, [Stage("layerwise", 1)], mixer=Merge)
    with pytest.warns(
        UserWarning, match=r"only \d+ numbers are trained at 2 sites, as Merge .*model.trained.projections"
    ):
        trainer(tmp_path).fit(module, data)


def test_mixers_without_parameters_say_what_they_lack(teacher: str, tmp_path: Path) -> None:
    data = tiny.image_data(tmp_path)
    for mixer in (SoftmaxAttention, NeighborhoodAttention):
        module = distillation(teacher, mixer=mixer)
        with pytest.raises(ConfigurationError, match=f"{mixer.__name__} has no parameters.*model.trained.projections"):
            trainer(tmp_path).fit(module, data)
        trainer(tmp_path, limit_val_batches=1).validate(module, data, verbose=False)
    trained = distillation(teacher, [Stage("layerwise", 1)], mixer=SoftmaxAttention, trained={"projections": True})
    trainer(tmp_path).fit(trained, data)
