"""The calls of a site under bf16-mixed stay within their target, and the count sees every one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import launches
from benchmarks.launches import CASTS, TARGETS, TRITON, Calls, count
from blocks.ops.optional import why_missing

ROOT = Path(__file__).parents[2]


def test_calls_that_compute_are_counted_below_autocast_and_views_are_not() -> None:
    x, weight = torch.randn(4, 6), torch.nn.Parameter(torch.randn(3, 6))
    with torch.autocast("cpu", torch.bfloat16), Calls() as calls:
        torch.nn.functional.linear(x, weight).t().reshape(2, 6)[:, 1:]
    assert calls.names == {"_to_copy": 2, "mm": 1, "clone": 1}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_site_keeps_to_its_calls(batch: int) -> None:
    few = count("few calls", batch=batch)
    assert few["forward"]["_foreach_copy_"] == 1  # of all weights at once
    assert sum(few["forward"][name] for name in CASTS) == 1
    assert few["forward"].total() - 1 <= TARGETS["few calls"][0]
    slow = count("layer by layer", batch=batch)
    assert slow["forward"].total() > 2 * few["forward"].total()
    assert slow["rest"].total() > 2 * few["rest"].total()


@pytest.mark.slow  # the interpreter takes its time
def test_triton_kernels_and_calls_inside_of_an_operation_are_counted() -> None:
    pytest.importorskip("triton", reason="Triton, which has no wheel for this platform, is not installed")
    counted = count(TRITON)
    assert counted["forward"] == {"_foreach_copy_": 1, "project": 1, "mix_stages": 1, "leave": 1}
    backward = ["project", "gate_gradients", "tap_gradients", "input_gradients", "collect", "pool_gradients"]
    kernels = dict.fromkeys([*backward, "sums", "gradients"], 1) | {"matrix_gradients": 2}
    assert counted["rest"] == kernels | {"sum": 1, "_foreach_copy_": 1}
    assert counted["rest"].total() <= 12


@pytest.mark.slow
def test_the_command_counts_every_form() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.launches"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(launches.FORMS) - bool(why_missing("triton"))


@pytest.mark.parametrize("missed_target", [(16, None), (50, 12)], ids=["forward", "step"])
def test_a_missed_target_is_an_error(
    missed_target: tuple[int, int | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(launches.FORMS, TRITON)  # has its own test, in an interpreter that takes its time
    with pytest.raises(SystemExit) as met:
        launches.main([])
    monkeypatch.setitem(TARGETS, "layer by layer", missed_target)
    with pytest.raises(SystemExit) as missed:
        launches.main(["--names"])
    assert (met.value.code, missed.value.code) == (0, 1)
    assert "_foreach_copy_ 1" in capsys.readouterr().out
