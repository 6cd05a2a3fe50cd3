"""Images at their edges: conversion and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sparsight.evaluation.images.images import resized, to_uint8


def test_uint8_clamps_and_rounds() -> None:
    values = torch.tensor([-0.01, 0.0, 0.001, 0.5, 0.999, 1.0, 1.01]).view(1, 1, 1, 7)
    assert to_uint8(values).flatten().tolist() == [0, 0, 0, 128, 255, 255, 255]
    with pytest.raises(ValueError, match="uint8"):
        to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(1, 2, 2\)"):
        to_uint8(torch.zeros(1, 2, 2))


@pytest.mark.parametrize(("side", "size"), [(40, 16), (16, 40), (16, 16)])
def test_resizing_is_that_of_pillow(side: int, size: int) -> None:
    image = torch.rand(side, side)
    expected = Image.fromarray(image.numpy(), mode="F").resize((size, size), Image.Resampling.BICUBIC)
    found = resized(image[None, None], size)[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(np.array(expected)), atol=2e-3, rtol=0)
