"""What mixers get wrong at other sizes: nothing where one is full attention, something where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import larger_pictures
from sparsight.diffusion.model.diffusion_model import DiffusionModel


def test_a_covered_grid_has_no_error_and_the_teacher_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.rand(2, 1, 32, 32), torch.tensor([1, 2])
    monkeypatch.setattr(larger_pictures, "fashion_mnist", lambda data, *, train: pictures)
    monkeypatch.setattr(larger_pictures, "LEVELS", (300,))
    loaded: list[DiffusionModel] = []
    load = DiffusionModel.from_pretrained

    def kept(*names: str) -> DiffusionModel:
        loaded.append(load(*names))
        return loaded[-1]

    monkeypatch.setattr(larger_pictures.DiffusionModel, "from_pretrained", kept)
    found = larger_pictures.errors(["focal_halo_4", "no_mixing"], [32, 48], Path(), count=2)
    assert found["focal_halo_4"][32] < 1e-6 < 1e-3 < found["focal_halo_4"][48] < found["no_mixing"][48]
    assert type(loaded[0].denoiser.transformer_blocks[0].attn1).__name__ == "Attention"
