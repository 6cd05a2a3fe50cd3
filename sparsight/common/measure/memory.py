"""Peak memory of a call, and memory that is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile

from sparsight.common.measure.latency import Call, synchronize

METHOD = (
    "Peak memory is the most bytes that tensors held at one time during a call, above what was held before it. On CUDA "
    "it is the caching allocator's peak; on a CPU it is summed from the allocations and releases that torch's profiler "
    "records, so scratch space that libraries allocate past torch is not in it."
)


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most bytes that ``call`` held at a time beyond those held before it; see ``METHOD``.

    Raises:
        ValueError: The device is neither a CPU nor CUDA: others do not report their peak.
    """
    if device.type == "cpu":
        return _peak_bytes_on_cpu(call)
    if device.type != "cuda":
        raise ValueError(f"peak memory is measured on cpu and cuda devices, not on {device.type}")
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_bytes_on_cpu(call: Call) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports to stderr that it began and ended
    with profile(profile_memory=True) as recorded:
        call()
    results: Any = recorded.kineto_results
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def held_bytes(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters and buffers, shared ones counted once."""
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


def free_bytes(device: torch.device) -> int:
    """Memory, in bytes, that can still be allocated on the device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own cache
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")  # Linux: knows about caches that would be given up
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory: CUDA has an exception of its own, the CPU allocator only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
