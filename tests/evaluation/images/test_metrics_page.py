"""The code of docs/metrics.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sparsight.evaluation import images, texts
from sparsight.evaluation.images import FrechetDistance, in_batches
from tests import tiny_networks

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(code, names)
    real, student, teacher = torch.rand(3, 20, 3, 32, 32)
    values = names["judge"](real, student, teacher, str(tiny_networks.save_timm(tmp_path / "vit.safetensors")))
    assert set(values) == {"kid_test_vit", "kid_test_vit_std", "fidelity_pixel_rmse", "fidelity_pixel_psnr"}
    colours = FrechetDistance(names["Colours"]()).with_reference(in_batches(real))
    assert colours.extractor.num_features == 12
    assert colours.of(in_batches(student**2))["fd_colours2"] > colours.of(in_batches(student))["fd_colours2"]
    captions = ["a red cat", "two dogs", "the sea at night", "no idea"]
    value, low, high = names["bleu_with_interval"]([*captions[:3], "none"], [[caption] for caption in captions])
    assert low < value < high


def test_the_page_names_every_preset_and_metric() -> None:
    fragments = (Path(__file__).parents[3] / "configs" / "callbacks").glob("*.yaml")
    presets = [path.stem for path in fragments if "GenerationMetrics" in path.read_text()]
    classes = [*images.__all__, *texts.__all__]
    shown = [name for name in classes if name not in {"in_batches", "Reference", "GenerationMetric"}]
    assert presets and not [name for name in [*presets, *shown] if name not in PAGE]
