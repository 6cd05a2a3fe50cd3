"""bfloat16 is chosen where the hardware computes in it, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsight.command.trainer import SparsightTrainer
from sparsight.common.training.precision import processor_computes_in_bf16

X86 = {"architecture": "x86_64", "avx2": True}
NEEDS_A_GPU = (
    "_24gb",
    "_80gb",
    "_paper",
    "llava15_",
    "bunny_",
    "own_",
)  # experiments whose models a processor cannot train


@pytest.mark.parametrize(
    ("found", "kernels", "expected"),
    [
        (X86, "AVX2", False),
        (X86 | {"avx512_f": True}, "AVX512", False),
        (X86 | {"avx512_bf16": True}, "AVX512", True),
        (X86 | {"amx_bf16": True}, "AVX512", True),
        (X86 | {"amx_bf16": True, "avx512_bf16": True}, "AVX2", False),  # torch was told not to use them
        (X86 | {"amx_bf16": True, "avx512_bf16": True}, "DEFAULT", False),
        ({"architecture": "aarch64", "bf16": True}, "DEFAULT", True),
        ({"architecture": "aarch64", "bf16": False}, "SVE256", False),
        ({"architecture": "ppc64le"}, "VSX", False),
    ],
)
def test_processors(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], kernels: str, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kernels)
    assert processor_computes_in_bf16() is expected
    trainer = SparsightTrainer(precision="auto", accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer.precision == ("bf16-mixed" if expected else "32-true")


def test_the_choice_is_told_and_other_precisions_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    with caplog.at_level("INFO"):
        assert SparsightTrainer(**quiet).precision == "32-true"
        assert SparsightTrainer(precision="bf16-mixed", **quiet).precision == "bf16-mixed"
        assert "precision auto" not in caplog.text
        chosen = SparsightTrainer(precision="auto", **quiet).precision
    assert f"precision auto is {chosen}: this processor has" in caplog.text


def test_no_experiment_for_a_processor_asks_for_bf16_everywhere() -> None:
    precisions = {
        file.stem: yaml.safe_load(file.read_text()).get("trainer", {}).get("precision", "32-true")
        for file in Path("configs/experiment").glob("*.yaml")
        if not any(part in file.stem for part in NEEDS_A_GPU)
    }
    assert {"quickstart", "lvlm_demo", "fashion_mnist_study"} <= precisions.keys()
    assert precisions["quickstart"] == "32-true", "its figures in README are those of float32"
    assert set(precisions.values()) <= {"auto", "32-true"}, precisions
