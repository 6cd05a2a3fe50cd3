"""Methods inside the vision towers of tiny models: which rows they change, and what they see of an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blocks.tokens import TowerEdit, TowerSight, TwoResolutions
from sparsight.lvlm.methods.learned.tower import put_together
from sparsight.lvlm.methods.recipe import Recipe
from tests.tiny_methods import tried


class Marked(TowerEdit):
    """Adds to states behind a part and as they leave, and keeps what it saw."""

    cuts = 1

    def __init__(self) -> None:
        self.seen: list[TowerSight] = []
        self.own: list[Tensor] = []

    def look(self, sight: TowerSight) -> int:
        self.seen.append(sight)
        return len(self.seen)

    def between(self, cut: int, states: Tensor, sight: TowerSight, seen: int) -> Tensor:
        return states + 10.0 * seen

    def leave(self, states: Tensor, sight: TowerSight, seen: int) -> Tensor:
        self.own.append(states)
        return torch.full_like(states, float(seen))


def read_by_the_projector(model: Any, batch: dict[str, Any], recipe: Recipe | None) -> Tensor:
    """States of all crops (X, N, C) that the projector is given."""
    read: list[Tensor] = []
    kept = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        with torch.no_grad():
            if recipe is None:
                model(**batch)
            else:
                with recipe.on(model):
                    model(**batch)
    finally:
        kept.remove()
    return read[0]


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_whole_images_are_changed_and_tiles_are_not(family: str) -> None:
    model, (sample, _) = tried(family)
    plain = read_by_the_projector(model, sample, None)
    method = Marked()
    found = read_by_the_projector(model, sample, Recipe([method]))
    assert bool((found[0] == 1).all()) and len(method.seen) == 1
    torch.testing.assert_close(found[1:], plain[1:])
    (sight,) = method.seen
    pixels = sample["pixel_values"]
    whole = pixels[0] if pixels.ndim == 4 else pixels[0, 0]
    assert torch.equal(sight.pixels, whole) and sight.grid == (4, 4)
    sharp = whole if pixels.ndim == 4 else torch.cat([pixels[0, 1], pixels[0, 2]], 2)
    assert torch.equal(sight.sharp, sharp)
    assert not torch.allclose(method.own[0], plain[0], atol=0.1)  # the edit in the middle came this far
    torch.testing.assert_close(sight.encode(whole[None])[0], plain[0], atol=1e-5, rtol=1e-4)  # and is not in views


@pytest.mark.parametrize("size", [(20, 32), (16, 20), (32, 32)])
def test_padding_of_tiles_is_cut_off(size: tuple[int, int]) -> None:
    scale = min(16 / size[0], 32 / size[1])
    inner = torch.rand(3, round(size[0] * scale), round(size[1] * scale))
    image = torch.zeros(3, 16, 32)
    top, left = (16 - inner.shape[1]) // 2, (32 - inner.shape[2]) // 2
    image[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    tiles = torch.stack([image[:, :, :16], image[:, :, 16:]])
    assert torch.equal(put_together(tiles, 2, size), inner)


def test_other_families_and_shallow_towers_are_refused_by_name() -> None:
    for family in ("qwen2_5_vl", "gemma3"):
        told = "TwoResolutions works in the vision tower, of which llava, llava_next, llava_onevision are served"
        with pytest.raises(ValueError, match=told):
            Recipe([TwoResolutions()]).check(tried(family)[0])
    method = Marked()
    method.cuts = 4
    with pytest.raises(ValueError, match="Marked works between 5 parts of the tower, which has 3 layers"):
        Recipe([method]).check(tried("llava")[0])
