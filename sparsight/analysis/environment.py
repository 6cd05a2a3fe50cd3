"""What a measurement was made on: hardware, versions, threads, date."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from sparsight import __version__


def environment(device: torch.device) -> dict[str, object]:
    """Plain data that belongs beside every number."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "diffusers": version("diffusers"),
        "sparsight": __version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({cpu_name()})"


def cpu_name() -> str:
    """The processor's name as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
