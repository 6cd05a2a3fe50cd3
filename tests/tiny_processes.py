"""The command in processes of its own, and how a model is split over two of them."""

from __future__ import annotations

import subprocess
import sys

SHARDED = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}


def run_command(arguments: list[str]) -> None:
    """The command in a process of its own, as several of them are needed for a distributed run."""
    run = [sys.executable, "-m", "sparsight", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
