"""ViCrop against maps of eager attention and a slow search of windows."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparsight.lvlm.answer.vicrop import GENERAL, ViCrop, best_window
from tests.tiny_lvlm import tiny_processor
from tests.tiny_methods import tried
from tests.tiny_tokens import IMAGE


def slow(ratio: torch.Tensor, sizes: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    best, found = -float("inf"), (0, 0, 0, 0)
    for rows, columns in sizes:
        sums = {
            (top, left): float(ratio[top : top + rows, left : left + columns].double().sum())
            for top in range(ratio.shape[0] - rows + 1)
            for left in range(ratio.shape[1] - columns + 1)
        }
        top, left = max(sums, key=lambda place: sums[place])
        steps = [(a, b) for a, b in itertools.product((-1, 0, 1), repeat=2) if (a, b) != (0, 0)]
        around = [sums[top + a, left + b] for a, b in steps if (top + a, left + b) in sums]
        apart = (sums[top, left] - sum(around) / len(around)) / (rows * columns) if around else 0.0
        if apart > best:
            best, found = apart, (left, top, left + columns, top + rows)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_window_that_stands_out_is_found(seed: int) -> None:
    ratio = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed))
    assert best_window(ratio, [(2, 3), (3.9, 4.2), (99, 99)]) == slow(ratio, [(2, 3), (3, 4), (6, 8)])
    ratio[4, 5:7] += 50.0
    assert best_window(ratio, [(1, 2), (2, 3)]) == (5, 4, 7, 5)


def image(width: int = 24, height: int = 16) -> Any:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the last token gives to the image's tokens in layer 3."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(**inputs, output_attentions=True).attentions[3][0, :, -1].mean(0)
    return weights[inputs["input_ids"][0] == IMAGE].unflatten(0, (4, 4))


def test_a_part_of_the_image_is_shown_once_more() -> None:
    model, _ = tried("llava")
    processor, picture, question = tiny_processor("llava"), image(), "What is in the corner?"
    method = ViCrop(layer=3, side=8, ratios=(1.0, 1.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, box = method.inputs(model, processor, picture, question)
    single = []
    for text in (question, GENERAL):
        parts = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        single.append(dict(processor(images=[picture], text=[prompt], return_tensors="pt")))
    ratio = row(model, single[0]) / row(model, single[1])
    left, top, right, bottom = slow(ratio, [(2, 2), (3, 3)])
    assert box == (4 + 4 * left, 4 * top, 4 + 4 * right, 4 * bottom)  # the middle 16 of 24 columns are seen
    assert int((inputs["input_ids"] == IMAGE).sum()) == 32 and len(inputs["pixel_values"]) == 2
    alone = processor(images=[picture.crop(box)], text=["<image>"], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs["pixel_values"][1:], alone)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_looked_for_is_named() -> None:
    model, _ = tried("llava")
    with pytest.raises(ValueError, match="ratios are above 0"):
        ViCrop(ratios=())
    with pytest.raises(ValueError, match="ViCropLook is about none of the 6 layers"):
        ViCrop(layer=14).box(model, tiny_processor("llava"), image(), "What?")
