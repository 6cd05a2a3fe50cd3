"""Draws of the batch to come: made by a thread, and the same whoever makes them."""

from __future__ import annotations

import threading
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from sparsight.diffusion.model import draws
from sparsight.diffusion.model.draws import AheadOfTime, key_of
from tests import tiny
from tests.tiny_distillation import distillation, trainer

INDEX = torch.tensor([3, 5])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads that drew noise, in order."""
    seen, plain = [], draws.sample_normal

    def watched(*args: object, **options: object) -> torch.Tensor:
        seen.append(threading.current_thread().name.partition("_")[0])
        return plain(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(draws, "sample_normal", watched)
    return seen


def test_what_was_expected_is_taken_and_all_else_is_drawn(threads: list[str]) -> None:
    ahead = AheadOfTime()
    expected, other = key_of(0, 4, INDEX, (2, 3)), key_of(0, 5, INDEX, (2, 3))
    ahead.begin(expected)
    taken = ahead.take(expected)
    assert threads == ["draws"]
    for mine, theirs in zip(astuple(taken), astuple(expected.draws()), strict=True):
        assert torch.equal(mine, theirs)
    ahead.begin(expected)
    assert torch.equal(ahead.take(other).noise, other.draws().noise)
    assert not torch.equal(other.draws().noise, taken.noise)
    drawn = threads.count("MainThread")
    assert torch.equal(ahead.take(expected).noise, taken.noise)  # it is still expected
    assert threads.count("MainThread") == drawn
    ahead.close()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_a_run_the_thread_draws_for_every_batch_but_the_first_of_an_epoch(
    tmp_path: Path, threads: list[str], accumulate: int
) -> None:
    module = distillation(str(tiny.save_pixel_pipeline(tmp_path / "teacher")))
    data = tiny.image_data(tmp_path, count=16)  # 4 batches
    options = {"max_steps": 6, "limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    trainer(tmp_path, enable_checkpointing=False, **options).fit(module, data)
    batches = 6 * accumulate
    assert threads.count("MainThread") == -(-batches // 4)
    assert batches <= len(threads) <= batches + 1  # one more if a batch was to come when the run ended
    assert module._ahead is None


def test_a_run_is_the_same_without_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))

    def trained() -> dict[str, torch.Tensor]:
        module = distillation(teacher)
        run = trainer(tmp_path, enable_checkpointing=False, max_steps=6, limit_val_batches=0)
        run.fit(module, tiny.image_data(tmp_path, count=16))
        return {name: value for name, value in module.state_dict().items() if "mixer" in name}

    with_thread = trained()
    monkeypatch.setattr("lightning_modules.diffusion.DiffusionModule.draw_ahead", lambda *_: None)
    for name, value in trained().items():
        assert torch.equal(with_thread[name], value), name
