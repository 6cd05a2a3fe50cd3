"""Roofs and floors."""

from __future__ import annotations

import torch

from sparsight.common.measure.roofline import Roofs, Work, least_work, measure_roofs

ROOFS = Roofs(copy=100.0, matmul=1000.0, vector=10.0)


def test_the_floor_is_the_slower_of_moving_and_multiplying() -> None:
    assert Work(bytes=200, flops=1000).seconds(ROOFS) == 2.0
    assert Work(bytes=200, flops=5000).seconds(ROOFS) == 5.0


def test_least_work_of_a_linear_layer() -> None:
    sizes = {"inputs": 8 * 4, "weights": 4 * 6, "outputs": 8 * 6, "flops": 2 * 8 * 4 * 6, "itemsize": 2}
    assert least_work(**sizes) == Work(2 * (32 + 24 + 48), 384)
    # the backward pass reads gradient, input and weights, and writes gradients of input and weights; three products
    assert least_work(**sizes, backward=True) == Work(2 * (32 + 24 + 48) + 2 * (48 + 32 + 24 + 32 + 24), 3 * 384)


def test_roofs_of_this_machine() -> None:
    before = torch.get_float32_matmul_precision()
    roofs = measure_roofs(torch.device("cpu"), torch.float32)
    assert 1e8 < roofs.copy < 1e13
    assert 1e8 < roofs.matmul < 1e14
    assert 0.05 < roofs.vector / roofs.matmul < 20  # the same product, measured twice on a machine that may be busy
    assert torch.get_float32_matmul_precision() == before
