"""Two processes measure what one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny_networks
from tests.tiny_metrics_pair import main, measure
from tests.tiny_processes import together


@pytest.mark.filterwarnings("ignore:CLIP score", "ignore:PickScore")
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    clip = str(tiny_networks.save_clip(tmp_path / "clip"))
    alexnet = str(tiny_networks.save_alexnet(tmp_path / "alexnet.pth"))
    expected = measure(0, 1, tmp_path, clip, alexnet)
    assert len(expected) == 26 and expected["fidelity_lpips_alex"] > 0
    assert all(expected[name] for name in ("BLEU", "CIDEr", "RougeL", "WordAccuracy", "ChoiceAccuracy", "TurnSlope"))
    together(main, tmp_path, clip, alexnet)
    for rank in (0, 1):
        values = json.loads((tmp_path / f"values_{rank}.json").read_text())
        assert values == {name: pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in expected.items()}
    one, two = (load_file(tmp_path / f"reference_{processes}.safetensors") for processes in (1, 2))
    assert all(torch.allclose(one[name].double(), two[name].double(), rtol=1e-12) for name in one)
