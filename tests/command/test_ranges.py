"""Numbers out of range end before anything is loaded, and the message names option and value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from blocks import DeltaConvBlock
from callbacks import PruningSchedule, SampleGrid
from datamodules import ImageDataModule
from lightning_modules import AttentionDistillation, DenoiserTraining, SparseLayerTuning
from sparsight.diffusion.train.stages import Stage
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_records import Pictures


def trained(**options: Any) -> DenoiserTraining:
    return DenoiserTraining("no/such-pipeline", **options)


def tuned(**options: Any) -> SparseLayerTuning:
    return SparseLayerTuning("no/such-base", [TuningStage(1)], **options)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_of_sites_are_named_by_their_pattern(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"site_weights\.mid\* is {weight}; allowed: 0 or more"):
        AttentionDistillation("none", DeltaConvBlock, [Stage("layerwise", 1)], site_weights={"mid*": weight})  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "part"), [("lr", "layers"), ("projector_lr", "projector")])
def test_a_part_that_would_learn_nothing_is_not_trained(option: str, part: str) -> None:
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=rf"{option} is {rate}; allowed: above 0, or leave {part} out of train"):
            TuningStage(1, train=["projector", "layers"], **{"projector_lr": 0.1} | {option: rate})
    TuningStage(1, train=["projector"], lr=0.0, projector_lr=0.1)


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (lambda **o: trained(noise=o), "snr_gamma", -5.0),
        (lambda **o: trained(schedule=o), "warmup_steps", -1),
        (lambda **o: AttentionDistillation("none", trained=o), "init_samples", -1),
        *[(lambda **o: tuned(healing=o), "hidden", value) for value in (-1.0, math.nan)],
        (LoRA, "alpha", 0),
        (LoRA, "dropout", 1.0),
        (LoRA, "least_share", math.nan),
        (lambda **o: SampleGrid(labels=[0], **o), "every_n_steps", 0),
        (lambda **o: PruningSchedule(end=9, **o), "amount", math.nan),
        *[(lambda **o: ImageDataModule(Pictures([]), batch_size=1, **o), "image_size", value) for value in (0, 10**5)],
        (lambda **o: ImageDataModule(Pictures([]), batch_size=1, image_size=4, **o), "num_workers", 10**6),
    ],
)
def test_numbers_out_of_range_are_named_before_weights_are_loaded(
    make: Callable[..., object], option: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"{option} (is|and|are) .*({value}.*allowed|got .*{value})"):
        make(**{option: value})
