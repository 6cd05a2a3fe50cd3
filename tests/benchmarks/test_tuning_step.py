"""Recipes of tuning are compared in one run, each with what one would write by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tuning_step import main
from tests.tiny_files import write_idx
from tests.tiny_lvlm import save_tiny_lvlm


@pytest.mark.slow
def test_recipes_stand_beside_loops_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, rng = save_tiny_lvlm(tmp_path / "base", "fast_vlm", max_position_embeddings=2048), np.random.default_rng(0)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", rng.integers(0, 255, (64, 16, 16)).astype(np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(64, dtype=np.uint8) % 10)
    chosen = ["25 % uniform, packed", "25 % by adapters"]
    asked = ["--base", str(base), "--data", str(tmp_path), "--batch_size", "2", "--steps", "2", "--loops", "1"]
    asked += ["--parts", "recipes", "--output", str(tmp_path / "out"), "--recipes", *chosen]
    monkeypatch.setattr(sys, "argv", ["tuning_step", *asked])
    main()
    rows = json.loads((tmp_path / "out" / "tuning_step.json").read_text())["recipes"]
    assert [row["recipe"] for row in rows] == chosen
    for row in rows:
        assert row["ratio"] == pytest.approx(row["tokens/s, sparsight"] / row["tokens/s, by hand"])
        assert min(row["peak bytes, sparsight"], row["peak bytes, by hand"]) > 300_000  # weights alone
    assert (
        "| recipe | tokens/s, sparsight | tokens/s, by hand | ratio | peak GiB, sparsight |" in capsys.readouterr().out
    )
