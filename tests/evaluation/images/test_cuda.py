"""A GPU measures what a CPU does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsight.evaluation.images import (
    ClassifierScore,
    CLIPScore,
    DensityCoverage,
    FrechetDistance,
    GaussianDistance,
    HPSv2,
    KernelDistance,
    PatchFrechetDistance,
    PickScore,
    PrecisionRecall,
    Samples,
    TeacherError,
    TeacherSimilarity,
)
from tests import tiny_networks
from tests.tiny_features import Quarters
from tests.tiny_metrics_pair import of_teacher, real, share


def on(samples: Samples, device: str) -> Samples:
    """Samples with their images on a device; ids stay on the CPU, as GenerationMetrics makes them."""
    parts = (samples.images, samples.teacher_images, samples.latents, samples.teacher_latents)
    images, teacher, latents, teacher_latents = (part.to(device) for part in parts if part is not None)
    return Samples(images, samples.index, samples.captions, teacher, latents, teacher_latents)


def measured(device: str, clip: str) -> dict[str, float]:
    sets = [
        FrechetDistance(Quarters()),
        KernelDistance(Quarters(), subset_size=5, subsets=7),
        GaussianDistance(Quarters(), sigma=0.1),
        PatchFrechetDistance(Quarters(), size=20, patches=3),
    ]
    near = [PrecisionRecall(Quarters()), DensityCoverage(Quarters(), neighbours=2)]
    pairs = [CLIPScore(clip), TeacherError("pixels"), TeacherError("latents"), TeacherSimilarity(Quarters())]
    alone = [PickScore(clip), HPSv2(weights=None, model=clip), ClassifierScore(Quarters(), splits=3)]
    metrics: list[Any] = [metric.to(device) for metric in (*sets, *near, *pairs, *alone)]
    for distance in sets:
        for samples in real(0, 1):
            distance.update_reference(samples.images.to(device), samples.index)
    for distance in near:  # sets that lie apart would give nothing but zeros
        for samples in of_teacher(share(0, 1)):
            distance.update_reference(samples.images.to(device), samples.index)
    batches = [on(samples, device) for samples in share(0, 1)]
    return {name: value for metric in metrics for name, value in metric.of(batches).items()}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:CLIP score", "ignore:PickScore", "ignore:HPSv2")
def test_a_gpu_measures_what_a_cpu_does(tmp_path: Path) -> None:
    clip = str(tiny_networks.save_clip(tmp_path / "clip"))
    expected = measured("cpu", clip)
    found = measured("cuda", clip)
    assert found == {name: pytest.approx(value, rel=1e-2, abs=1e-3) for name, value in expected.items()}
