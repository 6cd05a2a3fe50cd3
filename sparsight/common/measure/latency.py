"""Time of calls, by the clock or of the processor: medians after warm-up, in turn, so that drift meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch

Call = Callable[[], object]

MIN_RUNS = 3
WARM_UPS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over ``runs`` timed runs."""

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True)
class TooSlow:
    """Seconds of the one run of a call that will not finish its runs in the time it has."""

    seconds: float


def time_in_turn(
    calls: Mapping[str, Call],
    *,
    device: torch.device,
    runs: int = 20,
    max_seconds: float = 20.0,
    processor: bool = False,
) -> dict[str, Timing | TooSlow]:
    """Time every call, one run of each after the other, after warm-up.

    Args:
        calls: What to time, by name. Asynchronous devices are synchronised before every reading of the clock.
        device: Where the calls compute.
        runs: Timed runs of each; fewer, but at least 3, when a call's seconds are spent.
        max_seconds: Time for all runs of one call. One that takes more than a quarter of it for a run is given up.
        processor: Count processor time, of all threads, where the calls compute on a CPU.

    Returns:
        By name, the timing, or the length of the run that was too slow.
    """
    outcome: dict[str, Timing | TooSlow] = {}
    measure = partial(seconds_of, device=device, processor=processor)
    for name, call in calls.items():
        first = measure(call)
        if longest_run(max_seconds) < first <= max_seconds:
            first = measure(call)  # the first one may have been a cold start
        if first > longest_run(max_seconds):
            outcome[name] = TooSlow(first)
        elif first < max_seconds / runs:
            for _ in range(WARM_UPS):
                measure(call)
    samples: dict[str, list[float]] = {name: [] for name in calls if name not in outcome}
    for _ in range(runs):
        for name, seconds in samples.items():
            if len(seconds) < MIN_RUNS or sum(seconds) < max_seconds:
                seconds.append(measure(calls[name]))
    return outcome | {name: timing_of(seconds) for name, seconds in samples.items()}


def longest_run(max_seconds: float) -> float:
    """Longest run, in seconds, with which the warm-up and the fewest timed runs fit into ``max_seconds``."""
    return max_seconds / (MIN_RUNS + 1)


def seconds_of(call: Call, device: torch.device, *, processor: bool = False) -> float:
    """Seconds of one run, until the device is done; on CUDA by events, with a cold cache.

    With ``processor`` it is the time that this process has spent on CPUs, which others on the machine move less.
    """
    if device.type == "cuda":
        return _seconds_on_cuda(call, device)
    read = time.process_time if processor else time.perf_counter
    synchronize(device)
    begin = read()
    call()
    synchronize(device)
    return read() - begin


def _seconds_on_cuda(call: Call, device: torch.device) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        synchronize(device)
        _cache_filler(device).zero_()  # what it takes also lets the CPU get ahead with its launches
        begin.record()
        call()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1e3


@cache
def _cache_filler(device: torch.device) -> torch.Tensor:
    """More bytes than any GPU's cache holds."""
    return torch.empty(2**28, dtype=torch.int8, device=device)


def timing_of(seconds: list[float]) -> Timing:
    """Median and percentiles of runs; with fewer than 10 runs the percentiles are close to the extremes."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1)
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return Timing(statistics.median(seconds), deciles[0], deciles[-1], len(seconds))


def synchronize(device: torch.device) -> None:
    """Wait for all work on an accelerator; a CPU is always done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
