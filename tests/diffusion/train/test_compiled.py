"""A run whose blocks are to be compiled says at once where nothing can be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.train.compiled import check_compiler
from tests import tiny
from tests.tiny_distillation import distillation, trainer

ASK = """
import torch
from sparsight.diffusion.train.compiled import check_compiler
check_compiler(torch.device("cpu"))
"""


@pytest.mark.slow
def test_a_missing_compiler_is_named_with_the_option(tmp_path: Path) -> None:
    nowhere = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    told = subprocess.run([sys.executable, "-c", ASK], env=os.environ | nowhere, capture_output=True, text=True).stderr
    reason = "torch cannot compile for cpu here (InvalidCxxCompiler"
    assert f"ConfigurationError: model.compute.compile is true, and {reason}" in told
    assert "install a C++ compiler such as g++, or set it to false" in told


@pytest.mark.slow
def test_a_compiler_that_works_is_passed_over() -> None:
    check_compiler(torch.device("cpu"))


def test_a_run_asks_before_anything_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> None:
        raise ConfigurationError(f"no compiler for {device}")

    monkeypatch.setattr("lightning_modules.diffusion.check_compiler", refuse)
    module = distillation(str(tiny.save_pixel_pipeline(tmp_path / "teacher")), compute={"compile": True})
    with pytest.raises(ConfigurationError, match="no compiler for cpu"):
        trainer(tmp_path, max_steps=1).fit(module, tiny.image_data(tmp_path, count=8))
