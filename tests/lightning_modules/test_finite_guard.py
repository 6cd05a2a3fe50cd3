"""Numbers that are not finite end a run before they reach a parameter, an average or a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from callbacks import TrainableEMA
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import NonFiniteError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.train.stages import Stage
from tests import tiny, tiny_poisoned_pair
from tests.tiny_distillation import distillation, trainer
from tests.tiny_poison import Poison, PoisonedGradient, state_of
from tests.tiny_processes import together
from tests.tiny_tuning import tuning_config

STAGES = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 4, warmup_steps=1)]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path / "teacher"))


def denoising(teacher: str, **options: Any) -> DenoiserTraining:
    return DenoiserTraining(teacher, trainable=["*.attn1.*"], schedule={"warmup_steps": 1}, **options)


ADAM = partial(torch.optim.AdamW)
FUSED = partial(torch.optim.AdamW, fused=True)  # leaves out steps by itself, and nobody waits


@pytest.mark.parametrize(("accumulate", "adam"), [(1, ADAM), (2, FUSED), (1, FUSED)])
def test_a_batch_that_is_not_finite_ends_the_run_and_spoils_nothing(
    teacher: str, tmp_path: Path, accumulate: int, adam: Any
) -> None:
    poison, average = Poison([2 * accumulate]), TrainableEMA()
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, save_last=True, filename="{step}")
    runner = trainer(tmp_path, callbacks=[poison, average, saver], accumulate_grad_batches=accumulate)
    module = distillation(teacher, STAGES, optimizer=adam)
    with pytest.raises(NonFiniteError) as told:
        runner.fit(module, tiny.image_data(tmp_path, count=48))
    first = ", ".join(map(str, poison.ids[2 * accumulate]))
    text = str(told.value)
    assert text.startswith("step 2, stage 2 of 2 (end_to_end): loss term ") and f"of samples {first} is NaN" in text
    assert "\n" not in text
    if accumulate == 1:
        assert f"(image of sample {poison.ids[2][0]} is so itself)" in text
    after, kept = state_of(runner, module), [name for name in poison.before if not name.startswith("optimiser.")]
    assert all(torch.equal(poison.before[name], after[name]) for name in kept)  # the stage's optimiser is a fresh one
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert all(value.isfinite().all() for value in average.average.values())


class WithoutTarget(AttentionDistillation):
    """Its data's true target is lost at one step."""

    lost_at = 1

    def noised(self, batch: Any, *, step: int, **options: Any) -> dict[str, Any]:
        noised = super().noised(batch, step=step, **options)
        return noised | ({"target": noised["target"] * torch.nan} if step == self.lost_at else {})


def test_the_loss_term_is_named(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher, [Stage("end_to_end", 3, loss="released", warmup_steps=1)])
    module.__class__ = WithoutTarget
    told = r"step 1, stage 1 of 1 \(end_to_end\): loss term to_target of samples .*lower the learning rate"
    with pytest.raises(NonFiniteError, match=told):
        trainer(tmp_path).fit(module, tiny.image_data(tmp_path))
    module = distillation(teacher, [Stage("end_to_end", 3, loss="released", warmup_steps=1)])
    module.__class__, module.lost_at = WithoutTarget, 0  # type: ignore[assignment]
    with pytest.raises(NonFiniteError, match=r"step 0, .*No step was taken yet, so that model or data are the cause"):
        trainer(tmp_path).fit(module, tiny.image_data(tmp_path))


@pytest.mark.parametrize(("adam", "precision"), [(ADAM, "32-true"), (FUSED, "bf16-mixed")])
def test_steps_are_left_out_as_often_as_allowed(teacher: str, tmp_path: Path, adam: Any, precision: str) -> None:
    poison, average = Poison([2]), TrainableEMA()
    module = denoising(teacher, max_skipped_steps=1, optimizer=partial(adam, lr=1e-3))
    data = tiny.image_data(tmp_path, count=48)
    # with clipping, which must not touch what is not there
    options = {"callbacks": [poison, average], "max_steps": 3, "gradient_clip_val": 1.0, "precision": precision}
    runner = trainer(tmp_path, **options)
    with pytest.warns(UserWarning, match=r"step 2, the only stage: loss term denoising .* number 1 of at most 1"):
        runner.fit(module, data)
    assert runner.global_step == 3, "a step that is left out counts"
    after = {name: p for name, p in module.named_parameters() if p.requires_grad}
    averages = {name.removeprefix("average."): v for name, v in poison.before.items() if name.startswith("average.")}
    assert all(torch.equal(value, average.average[name]) for name, value in averages.items())
    assert all(torch.equal(value, after[name]) for name, value in averages.items()), "fit leaves the average"
    left = state_of(runner, module)
    states = [name for name in poison.before if name.startswith("optimiser.")]
    assert states and all(torch.equal(poison.before[name], left[name]) for name in states)
    again = denoising(teacher, max_skipped_steps=1, optimizer=partial(adam, lr=1e-3))
    with pytest.warns(UserWarning), pytest.raises(NonFiniteError, match=r"raise model\.max_skipped_steps"):
        trainer(tmp_path, callbacks=[Poison([1, 3])], max_steps=6).fit(again, data)
    with pytest.raises(ValueError, match="max_skipped_steps is 0 or more"):
        denoising(teacher, max_skipped_steps=-1)


def test_a_resumed_run_knows_how_many_steps_it_left_out(teacher: str) -> None:
    module, again = denoising(teacher, max_skipped_steps=3), denoising(teacher, max_skipped_steps=3)
    module.guard.skipped = 2
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    again.on_load_checkpoint(checkpoint)
    assert again.guard.skipped == 2


@pytest.mark.parametrize("adam", [ADAM, FUSED])
def test_a_gradient_is_named_where_all_losses_are_finite(teacher: str, tmp_path: Path, adam: Any) -> None:
    module = distillation(teacher, STAGES, optimizer=adam)
    with pytest.raises(NonFiniteError, match=r"step 1, .*: gradient of denoiser\.\S+ in a batch of samples [\d, ]+ is"):
        trainer(tmp_path, callbacks=[PoisonedGradient(1)]).fit(module, tiny.image_data(tmp_path))


def test_a_gradient_scaler_may_overflow_but_not_for_ever(teacher: str, tmp_path: Path) -> None:
    def run(scaler: torch.amp.GradScaler, *more: Any, steps: int) -> DenoiserTraining:
        module = denoising(teacher)
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        callbacks = [TrainableEMA(), *more]
        trainer(tmp_path, plugins=[precision], callbacks=callbacks, max_steps=steps).fit(module, data)
        return module

    data = tiny.image_data(tmp_path)
    before = dict(denoising(teacher).named_parameters())
    overflowing = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-20)
    module = run(overflowing, steps=1)  # the scaler passed over it
    assert all(torch.equal(before[name], value) for name, value in module.named_parameters())
    assert overflowing.get_scale() < 2.0**126
    moved = run(overflowing, steps=8)
    assert any(not torch.equal(before[name], value) for name, value in moved.named_parameters())
    with pytest.raises(NonFiniteError, match="gradient of"):
        run(torch.amp.GradScaler("cpu", init_scale=8.0), PoisonedGradient(), steps=8)


def test_parameters_that_a_step_spoilt_reach_neither_average_nor_checkpoint(teacher: str, tmp_path: Path) -> None:
    def run(*callbacks: Any, steps: int) -> TrainableEMA:
        module = denoising(teacher, optimizer=lambda p: torch.optim.SGD(p, lr=torch.inf), max_skipped_steps=9)
        average = TrainableEMA()
        with pytest.raises(NonFiniteError) as told:
            trainer(tmp_path, callbacks=[average, *callbacks], max_steps=steps).fit(module, data)
        texts.append(str(told.value))
        return average

    texts: list[str] = []
    data = tiny.image_data(tmp_path)
    average = run(steps=3)
    assert "had become NaN or infinite by the steps before" in texts[0]
    assert all(value.isfinite().all() for value in average.average.values())
    run(ModelCheckpoint(tmp_path, every_n_train_steps=1), steps=3)
    assert "the moving average did not take" in texts[1]
    assert not list(tmp_path.glob("*.ckpt"))
    run(steps=1)
    assert "not finite" in texts[2] or "moving average" in texts[2]


def test_spoilt_weights_are_refused_when_they_are_loaded(teacher: str) -> None:
    module = distillation(teacher)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    name = next(iter(state))
    state[name].view(-1)[0] = torch.inf
    with pytest.raises(NonFiniteError, match=f"the checkpoint is spoilt: {name} is not finite"):
        module.load_state_dict(state)
    whole = DiffusionModel.from_pretrained(teacher)
    with torch.no_grad():
        whole.denoiser.proj_out_2.bias[0] = torch.nan
    whole.pipeline.save_pretrained(teacher + "_spoilt")
    with pytest.raises(NonFiniteError, match=r"the weights of transformer: proj_out_2\.bias is not finite"):
        denoising(teacher + "_spoilt")


def test_tuning_of_image_text_models_is_guarded_too(tmp_path: Path) -> None:
    config = tuning_config(tmp_path)
    (tmp_path / "poison.yaml").write_text("trainer: {callbacks+: [{class_path: tests.tiny_poison.Poison}]}")
    with pytest.raises(SystemExit, match=r"step 2, stage 1 of 1 \(.*\): loss term answers of samples .*pixel_values"):
        main(["fit", "--config", str(config), "--config", str(tmp_path / "poison.yaml")])
    steps = {torch.load(path, weights_only=True)["global_step"] for path in (tmp_path / "run").rglob("*.ckpt")}
    assert steps == {1, 2}


@pytest.mark.slow
def test_all_processes_stop_or_go_on_together(tmp_path: Path) -> None:
    """NaN on the second of two processes: under DDP with accumulation, under FSDP2, and with a step left out."""
    tiny.save_pixel_pipeline(tmp_path / "teacher")
    together(tiny_poisoned_pair.main, tmp_path)
    ours, theirs = (torch.load(tmp_path / f"found_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert ours == theirs
    for run in ("ddp", "fsdp2"):
        ended_at, text = ours[run]
        assert ended_at == 2 and text.startswith("step 2, stage 1 of 1 (layerwise): loss term site of samples"), text
    assert ours["left_out"] == [4, 1, True]


def test_a_fused_optimiser_and_a_scaler_leave_no_room_for_clipping(teacher: str, tmp_path: Path) -> None:
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    runner = trainer(tmp_path, plugins=[precision], gradient_clip_val=1.0, max_steps=1)
    with pytest.raises(ConfigurationError, match=r"model\.optimizer\.init_args\.fused to false"):
        runner.fit(denoising(teacher, optimizer=partial(FUSED, lr=1e-3)), tiny.image_data(tmp_path))
