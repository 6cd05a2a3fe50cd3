"""The run for a GPU: its plan at sizes for a CPU, and what happens when time is up or a piece fails."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_run
from benchmarks.gpu_plan import PLANS, Piece
from benchmarks.gpu_tables import TABLES, markdown
from sparsight.common.disk.journal import Journal, read_results

CPU = torch.device("cpu")


def main(folder: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    return gpu_run.main(["--device", "cpu", "--plan", "tiny", "--output", str(folder), *arguments])


def test_depthwise_rows_are_written_and_the_page_is_made_of_them(tmp_path: Path, capsys: Any) -> None:
    rows = main(tmp_path, "--only", "depthwise")
    ((key, found),) = rows.items()
    assert key == "depthwise 8 channels 4x4 kernel 3"
    assert {row["candidate"] for row in found} == {"planar float32", "channels-last float32"}
    assert all(row["seconds"] > 0 and row["least_bytes"] == 2 * 8 * 16 * 4 for row in found)
    page = capsys.readouterr().out
    assert "## Depthwise convolutions of torch" in page and "channels-last float32" in page
    assert gpu_run.main(["--report", "--output", str(tmp_path)]) == rows
    assert "channels-last float32" in capsys.readouterr().out
    assert (tmp_path / "rows.csv").read_text().count("\n") == 3


@pytest.mark.slow
def test_the_whole_tiny_plan_runs(tmp_path: Path) -> None:
    rows = main(tmp_path)
    every = [row for found in rows.values() for row in found]
    assert not [row for row in every if row.get("failed")]
    assert {row["candidate"] for row in every if row.get("skipped")} <= {"attention, cuDNN", "attention, flash"}
    assert {key.split()[0] for key in rows} == {*TABLES, "roofs"} - {"tests"}
    (kernel,) = rows["kernels float32"]
    assert kernel["right"] and kernel["computed with"] == "triton" and kernel["triton worst gradient"] < 1e-5
    (layer,) = (found for key, found in rows.items() if key.startswith("layer"))
    assert all(row["error"] < 1e-5 for row in layer if "error" in row)
    assert {row["candidate"] for row in layer if "error" in row} == {
        "delta, layer by layer",
        "delta, few calls",
        "delta, compiled",
        "delta, triton",
    }
    (step,) = (found for key, found in rows.items() if key.startswith("step"))
    assert {(row["mixers"], row["mode"]) for row in step} == {
        (backend, mode) for backend in ("torch", "triton") for mode in ("eager", "compiled blocks")
    }


def test_the_full_plan_begins_with_what_matters_most() -> None:
    keys = [piece.key for piece in PLANS["full"](CPU)]
    assert len(keys) == len({*keys}) and {key.split()[0] for key in keys} == {*TABLES, "roofs"}
    assert keys[0] == "roofs first" and keys[1] == "kernels bfloat16"  # nothing is timed before kernels are right
    first = {kind: next(at for at, key in enumerate(keys) if key.startswith(kind)) for kind in TABLES}
    assert first["layer"] < first["denoiser"] < first["step"] < first["depthwise"] < first["tests"]
    assert sum(piece.seconds for piece in PLANS["full"](CPU)) < 15 * 60


def test_every_piece_is_on_disk_before_the_next_and_trouble_costs_one(tmp_path: Path) -> None:
    path, done = tmp_path / "rows.jsonl", []

    def measure(key: str) -> list[dict[str, Any]]:
        done.append((key, [*read_results(path)]))
        if key == "bad" and len(done) == 2:
            raise RuntimeError("no kernel image\nmore")
        return [{"candidate": key}]

    pieces = [Piece(key, 0, lambda key=key: measure(key)) for key in ("good", "bad", "last")]  # type: ignore[misc]
    journal, soon = Journal(path, {"device": "this"}), time.monotonic() + 600
    assert gpu_run.run([*pieces, Piece("long", 10_000, list)], journal, deadline=soon) == [
        "bad: RuntimeError: no kernel image",
        "left for the same command: long",
    ]
    assert done == [("good", []), ("bad", ["good"]), ("last", ["good", "bad"])]
    assert json.loads(path.read_text().splitlines()[2])["result"] == [{"failed": "RuntimeError: no kernel image"}]
    assert gpu_run.run(pieces, journal, deadline=soon) == [] and len(done) == 3
    gpu_run.run(pieces, journal, deadline=soon, again=True)
    assert [key for key, _ in done[3:]] == ["bad"] and journal.results["bad"] == [{"candidate": "bad"}]


def test_ratios_are_those_of_candidates_that_ran_the_same_way() -> None:
    fixed = {"mode": "eager", "least_bytes": 1000, "least_flops": 0, "direction": "forward"}
    rows = {
        "roofs first": [{"copy": 1000.0, "matmul": 1.0, "vector": 1.0}],
        "roofs again": [{"copy": 2000.0, "matmul": 1.0, "vector": 1.0}],
        "layer x": [
            {"candidate": "attention (SDPA)", "seconds": 4.0, **fixed},
            {"candidate": "delta", "seconds": 2.0, **fixed},
            {"candidate": "delta", "seconds": 1.0, **fixed, "mode": "compiled"},
        ],
    }
    page = markdown({"device": "a card"}, rows, ["what is left"])
    (eager, compiled) = (line for line in page.splitlines() if "| delta |" in line)
    assert " 2.00 " in eager and " 25% " in eager and "2.00" not in compiled and " 50% " in compiled
    assert "a card" in page and "- what is left" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_way_to_try_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--device", "cpu"]):
        with pytest.raises(SystemExit):
            gpu_run.main(arguments)
        assert "--plan tiny" in capsys.readouterr().err
