"""Compiled blocks learn what others do; a run whose blocks are to be compiled says at once where nothing can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.train.compiled import compiles_on
from tests import tiny
from tests.tiny_distillation import distillation, trainer

ASK = """
import torch
from sparsight.diffusion.train.compiled import compiles_on
compiles_on(torch.device("cpu"), True)
"""


@pytest.mark.slow
def test_a_missing_compiler_is_named_with_the_option(tmp_path: Path) -> None:
    nowhere = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    told = subprocess.run([sys.executable, "-c", ASK], env=os.environ | nowhere, capture_output=True, text=True).stderr
    reason = "torch cannot compile for cpu here (InvalidCxxCompiler"
    assert f"ConfigurationError: model.compute.compile is true, and {reason}" in told
    assert "install a C++ compiler such as g++, or set it to false" in told


@pytest.mark.slow
def test_a_compiler_that_works_is_used() -> None:
    assert compiles_on(torch.device("cpu"), True)


@pytest.mark.parametrize("wanted", [False, "auto"])
def test_off_a_gpu_nothing_is_compiled_unless_it_is_asked_for(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: pytest.fail("compiled"))
    assert not compiles_on(torch.device("cpu"), wanted)


def test_auto_says_why_a_gpu_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nhundreds of lines")

    told: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function: fail)
    monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: None)
    monkeypatch.setattr("sparsight.diffusion.train.compiled.rank_zero_info", told.append)
    assert not compiles_on(torch.device("cuda"), "auto")
    (line,) = told
    assert line == (
        "model.compute.compile auto is false: torch cannot compile for cuda here (Failed to find C compiler.); Triton "
        "and a C compiler would let it"
    )
    with pytest.raises(ConfigurationError, match="install Triton and a C compiler, or set it to false"):
        compiles_on(torch.device("cuda"), True)


def test_a_run_asks_before_anything_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device, wanted: bool) -> None:
        raise ConfigurationError(f"no compiler for {device}: {wanted}")

    monkeypatch.setattr("lightning_modules.diffusion.compiles_on", refuse)
    module = distillation(str(tiny.save_pixel_pipeline(tmp_path / "teacher")), compute={"compile": True})
    with pytest.raises(ConfigurationError, match="no compiler for cpu: True"):
        trainer(tmp_path, max_steps=1).fit(module, tiny.image_data(tmp_path, count=8))


def test_auto_is_about_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("lightning_modules.diffusion.compiles_on", lambda device, wanted: asked.append(wanted))
    teacher, data = str(tiny.save_pixel_pipeline(tmp_path / "teacher")), tiny.image_data(tmp_path, count=8)
    for wanted in ("auto", True):
        module = distillation(teacher, compute={"compile": wanted})
        run = trainer(tmp_path, max_steps=1, limit_val_batches=1, enable_checkpointing=False)
        run.fit(module, data)
        run.validate(module, data)
    assert asked == ["auto", False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_learn_what_others_do(checkpointing: bool, tmp_path: Path) -> None:
    """Through both stages, and the hand-over between them."""
    learnt, measured = {}, {}
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    for compiled in (False, True):
        compute = {"compile": compiled, "gradient_checkpointing": checkpointing}
        module = distillation(teacher, compute=compute)
        run = trainer(tmp_path / str(compiled), enable_checkpointing=False)
        data = tiny.image_data(tmp_path, count=8)
        run.fit(module, data)
        assert run.global_step == 6
        (figures,) = run.validate(module, data)  # in inference mode, after code with gradients was compiled
        measured[compiled] = figures
        learnt[compiled] = {name: p.detach().clone() for name, p in module.denoiser.named_parameters()}
        blocks = [m for m in module.denoiser.modules() if m._compiled_call_impl is not None]
        assert bool(blocks) == compiled
    torch.testing.assert_close(learnt[True], learnt[False], rtol=1e-3, atol=1e-4)
    assert measured[True] == pytest.approx(measured[False], rel=1e-3)
