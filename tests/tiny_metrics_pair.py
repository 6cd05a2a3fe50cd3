"""What each of two processes does in test_processes: measure its share, and leave the values in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sparsight.evaluation.images import (
    ClassifierScore,
    CLIPScore,
    DensityCoverage,
    FrechetDistance,
    GaussianDistance,
    KernelDistance,
    PatchFrechetDistance,
    PickScore,
    PrecisionRecall,
    Reference,
    Samples,
    TeacherError,
    TeacherLPIPS,
    TeacherSimilarity,
)
from sparsight.evaluation.images.set_distance import SetDistance
from tests import tiny_answers as answered
from tests.tiny_features import Quarters

CAPTIONS = ["a cat", "no dog", "x", "boat", "much too long", "zz", "hat"]
COUNT = len(CAPTIONS)


def share(rank: int, processes: int, *, alone: bool = False) -> list[Samples]:
    """This process's samples, one or two a batch; all of them on the first process if ``alone``."""
    generator = torch.Generator().manual_seed(0)
    images, teacher = (torch.rand(COUNT, 3, 32, 32, generator=generator) for _ in range(2))
    latents, teacher_latents = (torch.randn(COUNT, 2, 4, 4, generator=generator) for _ in range(2))
    own = torch.arange(rank, COUNT, processes) if not alone else torch.arange(COUNT if rank == 0 else 0)
    return [
        Samples(images[i], i, [CAPTIONS[j] for j in i], teacher[i], latents[i], teacher_latents[i])
        for i in own.split(2)
        if len(i)
    ]


def of_teacher(batches: list[Samples]) -> list[Samples]:
    """The teacher's images as samples."""
    return [Samples(each.teacher_images, each.index) for each in batches if each.teacher_images is not None]


def real(rank: int, processes: int) -> list[Samples]:
    """This process's reference images, which do not divide either."""
    images = torch.rand(11, 3, 32, 32, generator=torch.Generator().manual_seed(1)) ** 2
    return [Samples(images[i], i) for i in torch.arange(rank, 11, processes).split(3)]


def measure(rank: int, processes: int, folder: Path, clip: str, alexnet: str) -> dict[str, float]:
    """All metrics, in turn over dealt samples, over all on the first process, and over dealt ones again."""
    reference = Reference(str(folder / f"reference_{processes}.safetensors"), "random", count=11)
    sets: list[SetDistance] = [
        FrechetDistance(Quarters(), reference),
        KernelDistance(Quarters(), subset_size=5, subsets=7),
        GaussianDistance(Quarters(), sigma=0.1),
        PatchFrechetDistance(Quarters(), size=20, patches=3),
    ]
    near: list[SetDistance] = [PrecisionRecall(Quarters()), DensityCoverage(Quarters(), neighbours=2)]
    for distance in near:  # sets that lie apart would give nothing but zeros
        distance.with_reference(of_teacher(share(rank, processes)))
    for distance in sets:
        distance.with_reference(real(rank, processes))
    errors = [TeacherError("pixels"), TeacherError("latents")]
    pairs = [
        CLIPScore(clip),
        PickScore(clip),
        ClassifierScore(Quarters(), splits=3),
        *errors,
        TeacherSimilarity(Quarters()),
        TeacherLPIPS(alexnet),
    ]
    metrics: list[Any] = [*sets, *near, *pairs]
    rounds = [share(rank, processes, alone=alone) for alone in (False, True, False)]
    values = [{name: value for metric in metrics for name, value in metric.of(batches).items()} for batches in rounds]
    dealt, alone = range(rank, answered.COUNT, processes), range(answered.COUNT if rank == 0 else 0)
    values = [value | answered.score(own) for value, own in zip(values, (dealt, alone, dealt), strict=True)]
    for again in values[1:]:
        for name, value in values[0].items():
            assert abs(again[name] - value) < 1e-5 * max(1, abs(value)), name
    return values[0]


def main(rank: int, folder: Path, clip: str, alexnet: str) -> None:
    """One process of two."""
    torch.manual_seed(rank)  # nothing may depend on the global generator
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    values = measure(rank, 2, folder, clip, alexnet)
    (folder / f"values_{rank}.json").write_text(json.dumps(values))
