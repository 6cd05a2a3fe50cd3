"""Metrics refuse images, features and statistics that are no numbers, and say which."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from callbacks import ImageWriter
from sparsight.common.finite import NonFiniteError
from sparsight.evaluation.images import FrechetDistance, Samples, TeacherError
from sparsight.evaluation.images.images import to_uint8
from sparsight.evaluation.images.reference import Reference
from sparsight.evaluation.images.samples import in_batches
from tests.tiny_features import Quarters

INDEX = torch.tensor([7, 3, 11])


def spoilt(*rows: int, value: float = torch.nan) -> Tensor:
    images = torch.rand(3, 1, 4, 4)
    images[list(rows), 0, 1, 2] = value
    return images


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["images", "teacher_images", "latents", "teacher_latents"])
def test_samples_that_are_not_finite_are_named(name: str, value: float) -> None:
    given: dict[str, Any] = {"images": torch.rand(3, 1, 4, 4)} | {name: spoilt(0, 2, value=value)}
    with pytest.raises(NonFiniteError, match=f"{name.replace('_', ' ')} of samples 7, 11 are not finite"):
        Samples(index=INDEX, **given)
    TeacherError().update(Samples(torch.rand(3, 1, 4, 4), INDEX, teacher_images=torch.rand(3, 1, 4, 4)))


class Dividing(Quarters):
    """Divides by the brightness, which is 0 for black images."""

    def extract(self, images_BCHW: Tensor) -> Tensor:
        features_BF = super().extract(images_BCHW)
        return features_BF / features_BF.sum(1, keepdim=True)


def test_features_and_reference_images_that_are_not_finite_are_named(tmp_path: Path) -> None:
    black = torch.rand(3, 1, 4, 4)
    black[1] = 0
    metric = FrechetDistance(Dividing())
    with pytest.raises(NonFiniteError, match=r"images of the student: quarters features of sample 3 is not finite"):
        metric.update(Samples(black, INDEX))
    with pytest.raises(NonFiniteError, match=r"reference images: quarters features of sample 3 is not finite"):
        metric.update_reference(black, INDEX)
    with pytest.raises(NonFiniteError, match=r"reference images: pixels of sample 7 is not finite"):
        metric.update_reference(spoilt(0), INDEX)
    with pytest.raises(NonFiniteError, match="images: pixels is not finite"):
        to_uint8(spoilt(0))
    assert int(metric.real.count) == 0 and int(metric.drawn.count) == 0

    reference = Reference(str(tmp_path / "reference.safetensors"), dataset="rand")
    FrechetDistance(Quarters(), reference).with_reference(in_batches(torch.rand(9, 1, 4, 4))).complete_reference()
    statistics = load_file(reference.file)
    statistics["mean"][0] = torch.nan
    save_file(statistics, reference.file)
    with pytest.raises(NonFiniteError, match=r"reference\.safetensors: mean is not finite"):
        FrechetDistance(Quarters(), reference)


def test_no_picture_is_written_of_what_is_not_finite(tmp_path: Path) -> None:
    writer = ImageWriter(str(tmp_path))
    trainer = SimpleNamespace()
    drawn = {"images": spoilt(1), "index": INDEX}
    with pytest.raises(NonFiniteError, match="pixels of sample 3 is not finite"):
        writer.write_on_batch_end(trainer, None, drawn, None, None, 0, 0)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    writer.write_on_batch_end(trainer, None, drawn | {"images": torch.rand(3, 1, 4, 4)}, None, None, 0, 0)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 3
