"""How fast a device can be, and the least that a computation must move and multiply: their quotient is a floor of time.

Williams et al., "Roofline: An Insightful Visual Performance Model for Multicore Architectures", CACM 52(4), 2009. The
roofs are measured, not read from a data sheet, so that clocks and power limits of the day are in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparsight.common.measure.latency import TooSlow, time_in_turn

FLOORS = (
    "The floor of a forward pass is the larger of two times: reading input and weights once and writing the output "
    "once at the copy bandwidth, and all counted FLOPs at the matmul throughput. Forward+backward: input and weights "
    "three times (two reads, one gradient), output twice, three times the FLOPs. No implementation can be faster, "
    "except where a tensor is still in the device's cache."
)


@dataclass(frozen=True)
class Roofs:
    """Measured limits of a device.

    Attributes:
        copy: Bytes per second of a large copy, read and written ones both counted.
        matmul: FLOP/s of a large matrix product in the precision of the benchmark.
        vector: FLOP/s of a large float32 product without TF32: the rate of plain multiply-adds, which direct
            convolutions are bound to, while tensor cores are idle.
    """

    copy: float
    matmul: float
    vector: float


@dataclass(frozen=True)
class Work:
    """Least bytes to move and FLOPs to do."""

    bytes: int
    flops: int

    def seconds(self, roofs: Roofs) -> float:
        """Floor of the time that it takes; see ``FLOORS``."""
        return max(self.bytes / roofs.copy, self.flops / roofs.matmul)


def least_work(*, inputs: int, weights: int, outputs: int, flops: int, itemsize: int, backward: bool = False) -> Work:
    """Work of a function of so many input and output elements and weights; ``flops`` are those of its forward pass."""
    if backward:
        return Work((3 * (inputs + weights) + 2 * outputs) * itemsize, 3 * flops)
    return Work((inputs + weights + outputs) * itemsize, flops)


def measure_roofs(device: torch.device, dtype: torch.dtype) -> Roofs:
    """Measure the limits of a device in a few seconds."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32
    try:
        return Roofs(_copy_rate(device), _product_rate(device, dtype), _product_rate(device, torch.float32))
    finally:
        torch.set_float32_matmul_precision(precision)


def _copy_rate(device: torch.device) -> float:
    """Of tensors that no cache holds."""
    size = 2**30 if device.type == "cuda" else 2**26
    source, target = (torch.zeros(size, dtype=torch.int8, device=device) for _ in range(2))
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Of matrices that fill all cores."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: one @ other, device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a run among the fastest tenth."""
    timing = time_in_turn({"call": call}, device=device, runs=10, max_seconds=3.0)["call"]
    return timing.seconds if isinstance(timing, TooSlow) else timing.p10
