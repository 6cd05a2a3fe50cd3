"""Grids of one to three axes."""

from __future__ import annotations

import pytest

from blocks import Grid


def test_a_grid_is_the_same_with_and_without_names() -> None:
    assert Grid(4, 6) == Grid(height=4, width=6) and hash(Grid(4, 6)) == hash(Grid(height=4, width=6))
    assert Grid(3, 4, 6) == Grid(frames=3, height=4, width=6)
    assert Grid(9) == Grid(width=9) != Grid(1, 9)


@pytest.mark.parametrize("sizes", [(7,), (4, 6), (3, 4, 6)])
def test_sides_tokens_and_names(sizes: tuple[int, ...]) -> None:
    grid = Grid(*sizes)
    assert Grid(**grid.named) == grid and tuple(grid.named.values()) == sizes
    assert grid.width == sizes[-1] and grid.height == (sizes[-2] if len(sizes) > 1 else 1)
    assert str(grid) == "x".join(map(str, sizes))


def test_tokens() -> None:
    assert [Grid(7).tokens, Grid(4, 6).tokens, Grid(3, 4, 6).tokens] == [7, 24, 72]


@pytest.mark.parametrize("sizes", [(), (0,), (4, 0), (1, 2, 3, 4)])
def test_sides_that_make_no_grid(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"grid"):
        Grid(*sizes)


def test_axes_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="height, width"):
        Grid(rows=4, columns=6)
    with pytest.raises(ValueError, match="names"):
        Grid(4, width=6)
