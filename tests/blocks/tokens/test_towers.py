"""Methods inside the vision tower, against slow forms of their equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.tokens import DualPerspective, Shape, TowerSight, TwoResolutions
from blocks.tokens.towers.dual_perspective import interwoven, pieces, side_by_side, woven

SHAPE = Shape(2, 8, 2, 2, 4, 16, vision=16)
GRID = (4, 4)


def drawn(method: Any) -> Any:
    """The method with random weights."""
    held, generator = method.fit(SHAPE)[0], torch.Generator().manual_seed(1)
    for parameter in held.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return held


def encoded(views: Tensor) -> Tensor:
    """A tower that says 16 numbers of each patch of 2 x 2 pixels, (V, 16, 16)."""
    maps = torch.sin(torch.arange(16 * 12.0)).view(16, 12)
    return F.unfold(views, 2, stride=2).transpose(1, 2) @ maps.T


def sight(sharp: Tensor) -> TowerSight:
    return TowerSight(F.interpolate(sharp[None], (8, 8), mode="bilinear")[0], sharp, GRID, encoded)


def test_pieces_and_weaves_come_apart_and_together() -> None:
    image = torch.arange(2 * 6 * 4.0).view(2, 6, 4)
    parts, images = pieces(image, 2), woven(image, 2)
    for row in range(2):
        for column in range(2):
            number = 2 * row + column
            torch.testing.assert_close(parts[number], image[:, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2])
            torch.testing.assert_close(images[number], image[:, row::2, column::2])
    assert torch.equal(side_by_side(parts, 2), image) and torch.equal(interwoven(images, 2), image)


def attended(held: Any, ask: Tensor, other: Tensor, *, heads: int) -> Tensor:
    """A query after the other, a head after the other (N, C)."""
    query, key, value = held["query"](ask), held["key"](other), held["value"](other)
    width = ask.shape[1] // heads
    out = torch.zeros_like(ask)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for place in range(len(ask)):
            weights = (key[:, part] @ query[place, part] / width**0.5).softmax(0)
            out[place, part] = weights @ value[:, part]
    return held["norm"](held["out"](out) + ask)


def test_global_and_local_features_are_fused_as_the_equations_say() -> None:
    method = DualPerspective(side=2, heads=4)
    held = drawn(method)
    seen, states = sight(torch.randn(3, 16, 16)), torch.randn(16, 16)
    local, globe = torch.zeros(2, 8, 8, 16)  # maps of both kinds
    for row in range(2):
        for column in range(2):
            piece = seen.sharp[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            local[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = encoded(piece[None])[0].view(4, 4, 16)
            globe[row::2, column::2] = encoded(seen.sharp[None, :, row::2, column::2])[0].view(4, 4, 16)
    new_local, new_globe = torch.zeros(8, 8, 16), torch.zeros(8, 8, 16)
    for row in range(2):
        for column in range(2):
            piece = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            coarse = (slice(row, None, 2), slice(column, None, 2))
            for new, place, ask, other in ((new_globe, piece, globe, local), (new_local, coarse, local, globe)):
                flat = (part[place].reshape(16, 16) for part in (ask, other))
                new[place] = attended(held, *flat, heads=4).view(4, 4, 16)
    half = torch.cat([held["local"](new_local), held["global"](new_globe)], -1)
    fused = held["last_norm"](half + new_local + new_globe)
    small = F.interpolate(fused.permute(2, 0, 1)[None], (4, 4), mode="bilinear", align_corners=False)[0]
    wanted = (states + small.permute(1, 2, 0).reshape(16, 16)) / 2
    torch.testing.assert_close(method.leave(states, seen, None), wanted, atol=1e-5, rtol=1e-4)


def test_a_smaller_image_is_made_larger_first() -> None:
    method = DualPerspective(side=2, heads=4)
    drawn(method)
    small, states = torch.randn(3, 8, 8), torch.randn(16, 16)
    large = F.interpolate(small[None], (16, 16), mode="bicubic", align_corners=False)[0]
    one, other = (method.leave(states, TowerSight(small, sharp, GRID, encoded), None) for sharp in (small, large))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_two_resolutions_begin_as_nothing_and_join_as_the_equations_say() -> None:
    method = TwoResolutions([4, 6, 8, 10], [1, 1, 2, 1])
    method.fit(SHAPE)
    seen, states = sight(torch.randn(3, 24, 16)), torch.randn(16, 16)
    slow = method.look(seen)
    assert slow.shape == (10, *GRID)
    for cut in range(3):
        torch.testing.assert_close(method.between(cut, states, seen, slow), states)
    torch.testing.assert_close(method.leave(states, seen, slow), states)
    held = drawn(method)
    slow = method.look(seen)
    joint = held["joints"][1]
    fast_map = states.T.reshape(1, 16, 4, 4)
    spread = F.conv2d(fast_map, joint.fast_conv.weight, joint.fast_conv.bias, padding=3, groups=16)
    fast_map = fast_map + joint.fast_proj(F.gelu(spread))
    fast = fast_map.flatten(2)[0].T
    places = slow.flatten(1).T
    other = F.gelu(places @ joint.slow_conv.weight[:, :, 0, 0].T + joint.slow_conv.bias)
    other = other @ joint.slow_proj.weight[:, :, 0, 0].T + joint.slow_proj.bias
    gate = torch.tanh(joint.gate(torch.cat([fast.mean(0), other.mean(0)])))
    torch.testing.assert_close(method.between(1, states, seen, slow), fast + gate * other, atol=1e-5, rtol=1e-4)
    wanted = held["fast_out"](states) + held["slow_out"](places)
    torch.testing.assert_close(method.leave(states, seen, slow), wanted, atol=1e-5, rtol=1e-4)


def test_the_slow_tower_is_blocks_of_convnext() -> None:
    method = TwoResolutions([4, 6, 8, 10], [2, 1, 1, 1])
    slow = drawn(method)["slow"]
    pixels = torch.randn(1, 3, 32, 64)

    def norm(part: Any, maps: Tensor) -> Tensor:
        mean, spread = maps.mean(1, keepdim=True), maps.var(1, unbiased=False, keepdim=True)
        return (maps - mean) / (spread + 1e-6).sqrt() * part.weight[:, None, None] + part.bias[:, None, None]

    maps = norm(slow[1], slow[0](pixels))
    for block in slow[2:4]:
        inside = block.inside
        maps = maps + block.scale * inside[4](F.gelu(inside[2](norm(inside[1], inside[0](maps)))))
    torch.testing.assert_close(slow[:4](pixels), maps, atol=1e-5, rtol=1e-4)
    assert slow(pixels).shape == (1, 10, 1, 2)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TwoResolutions([1, 2], [1, 1]), "widths are four numbers"),
        (lambda: TwoResolutions(depths=[1, 0, 1, 1]), "depths are four numbers"),
        (lambda: DualPerspective(1), "side is from 2"),
        (lambda: DualPerspective(2, 3).fit(SHAPE), "heads 3 of DualPerspective do not divide the tower's 16"),
    ],
)
def test_options_that_cannot_be_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
