"""The examples in the docstrings of metrics run, and every metric has one."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.evaluation import images
from tests import tiny, tiny_networks
from tests.tiny_preference import save_reward
from tests.tiny_topiq import save_topiq

METRICS = [kind for kind in map(vars(images).get, images.__all__) if isinstance(kind, type)]
METRICS = [
    kind for kind in METRICS if issubclass(kind, images.GenerationMetric) and kind is not images.GenerationMetric
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples take for given: two sets of images, a network without download, and local models."""
    folder = tmp_path_factory.mktemp("models")
    rough = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    real, drawn = torch.nn.functional.interpolate(rough, (32, 32), mode="bilinear").split(10)
    return {name: getattr(images, name) for name in images.__all__} | {
        "torch": torch,
        "real": real,
        "drawn": drawn**3,
        "extractor": images.EfficientNetLite0Features(size=64),
        "clip": str(tiny_networks.save_clip(folder / "Tiny-CLIP")),
        "bert": str(tiny.save_text_encoder(folder / "bert")),
        "reward": str(save_reward(folder / "reward.safetensors")),
        "alexnet": str(tiny_networks.save_alexnet(folder / "alexnet.pth")),
    }


@pytest.mark.filterwarnings("ignore:Frechet distance")
@pytest.mark.parametrize("kind", METRICS)
def test_examples_run(kind: type, names: dict[str, Any], tmp_path: Path) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(kind, kind.__name__, globs=names)
    assert found.examples, f"{kind.__name__} has no example"
    if kind is images.TOPIQ:
        pytest.importorskip("pyiqa")
        found.globs["topiq"] = str(save_topiq(tmp_path / "topiq.safetensors"))
    told: list[str] = []
    result = doctest.DocTestRunner().run(found, out=told.append)
    assert not result.failed, "".join(told)
