"""Where the tokens of prompts come from, by the layouts that families give their images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blocks.tokens import FastV, TokenMap
from blocks.tokens.token_map import ANSWER, IMAGE, PAD, QUESTION, SYSTEM
from sparsight.lvlm.methods.families import FAMILIES, family_of
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.methods.spans import present_tokens, read_tokens, seeds_of
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_methods import tried

GRID = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(2))
IDS = torch.tensor([[0, 0, 7, 3, 3, 3, 3, 8, 9], [7, 3, 3, 3, 3, 3, 3, 3, 3]])
PRESENT = IDS != 0


def read(*, tiles: bool = False, labels: Tensor | None = None) -> TokenMap:
    return read_tokens(IDS, PRESENT, image_id=3, layouts=[GRID] * 3, tiles=tiles, labels=labels)


def test_images_that_follow_each_other_are_told_apart_and_tiles_are_put_together() -> None:
    apart, together = read(), read(tiles=True)
    assert apart.image.tolist()[1] == [-1, 0, 0, 0, 0, 1, 1, 1, 1] and apart.crop[1, 1:].eq(0).all()
    assert together.image.tolist()[1] == [-1, *[0] * 8] and together.crop.tolist()[1] == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    for found in (apart, together):
        assert found.image[0].tolist() == [-1, -1, -1, 0, 0, 0, 0, -1, -1]
        assert found.row[0, 3:7].tolist() == [0, 0, 1, 1] and found.column[0, 3:7].tolist() == [0, 1, 0, 1]
        assert found.kind[0].tolist() == [PAD, PAD, SYSTEM, *[IMAGE] * 4, QUESTION, QUESTION]


def test_all_from_the_first_label_on_is_answer() -> None:
    labels = torch.full_like(IDS, -100)
    labels[0, 7], labels[1, 5] = 8, 3
    found = read(labels=labels)
    assert found.kind[0, 7:].tolist() == [ANSWER, ANSWER] and found.kind[1].tolist() == [
        SYSTEM,
        *[IMAGE] * 4,
        *[ANSWER] * 4,
    ]
    assert found.last.tolist() == [6, 4]


def test_images_must_have_the_tokens_that_prompts_hold() -> None:
    with pytest.raises(ValueError, match="hold 12 image tokens, but their images have 8"):
        read_tokens(IDS, PRESENT, image_id=3, layouts=[GRID] * 2)


def test_seeds_depend_on_the_prompt_alone() -> None:
    alone = read_tokens(IDS[:1, 2:], PRESENT[:1, 2:], image_id=3, layouts=[GRID])
    assert seeds_of(IDS, read())[0] == seeds_of(IDS[:1, 2:], alone)[0] != seeds_of(IDS, read())[1]
    longer = torch.cat([IDS[:1, 2:], torch.tensor([[5]])], 1)
    labels = torch.tensor([[-100] * 7 + [5]])
    again = read_tokens(longer, longer != 0, image_id=3, layouts=[GRID], labels=labels)
    assert seeds_of(longer, again)[0] == seeds_of(IDS, read())[0]


def test_padding_is_read_off_any_mask() -> None:
    square = torch.ones(9, 9).tril().bool() & PRESENT[:, None, None]
    numbers = torch.zeros(square.shape).masked_fill(~square, -1e9)
    for mask in (PRESENT.long(), square, numbers, {"full_attention": square}):
        assert torch.equal(present_tokens(mask, IDS), PRESENT)
    assert present_tokens(None, IDS).all()


class Mapped(FastV):
    """Remembers the map."""

    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        self.tokens = tokens
        return super().keep(tokens, attention)


def mapped(family: str) -> TokenMap:
    model, samples = tried(family)
    policy = Mapped(3)
    with torch.no_grad(), Recipe([policy]).on(model):
        model(**samples[0])
    return policy.tokens


SHAPES: dict[str, list[tuple[int, int]]] = {  # of each crop: rows and columns
    "llava": [(4, 4)],
    "fast_vlm": [(2, 2)],
    "gemma3": [(2, 2)],
    "internvl": [(2, 2)],
    "qwen2_5_vl": [(2, 2)],
    "lfm2_vl": [(2, 2)],
    "smolvlm": [(2, 2)],
    "llava_next": [(4, 4), (4, 4), (4, 4)],
    "llava_onevision": [(4, 4), (4, 4), (4, 4)],
}


@pytest.mark.parametrize("family", SHAPES)
def test_grids_of_families(family: str) -> None:
    found = mapped(family)
    assert found.image[found.visual].eq(0).all()
    shapes = []
    for crop in range(int(found.crop.max()) + 1):
        of_crop = found.crop == crop
        rows, columns = found.row[of_crop].unique(), found.column[of_crop].unique()
        assert len(rows) * len(columns) == int(of_crop.sum())
        shapes.append((len(rows), len(columns)))
    assert shapes == SHAPES[family]


def test_packed_rows_of_two_tiles_end_in_marks() -> None:
    found = mapped("llava_next")
    visual = found.visual[0]
    wide = [(int(r), int(c), int(n)) for r, c, n in zip(found.row[0], found.column[0], found.crop[0], strict=True)]
    packed = [part for part, is_visual in zip(wide, visual, strict=True) if is_visual][16:]
    row = [[(n, c, 1 + c // 4) for c in range(8)] + [(-1, -1, -1)] for n in range(4)]
    assert packed == [token for line in row for token in line]


def test_families_that_are_not_tried_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recipes do not serve qwen3_vl_moe; they serve llava"):
        family_of(tiny_lvlm("qwen3_vl_moe").config)
    assert "qwen3_vl" in FAMILIES


def test_videos_are_refused() -> None:
    model, samples = tried("qwen3_vl")
    sample: dict[str, Any] = {**samples[0], "pixel_values_videos": torch.zeros(1)}
    with pytest.raises(ValueError, match="do not serve videos"), Recipe([FastV(3)]).on(model):
        model(**sample)
