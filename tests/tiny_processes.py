"""Processes that work together, forked from a server that has all imports behind it; or started by the command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context, start_processes

from sparsight.command.cli import main
from tests.tiny_reload import read_back_here

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds; processes that have not ended by then wait for each other
WHERE_USED = (  # imported where they are used, which is in each process
    "timm",
    "torch.utils.tensorboard",
    "transformers.models.fast_vlm.modeling_fast_vlm",
    "transformers.optimization",
)
SHARDED = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}


def server() -> ForkServerContext:
    """Where processes are forked: imports cost ten seconds of a processor once, not once a process."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *path]))
    context: Any = get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny_processors", "tests.tiny_kills", "tests.tiny", *WHERE_USED])
    seed = os.environ.pop("PL_GLOBAL_SEED", None)  # the server hands on its environment, also to later tests
    ensure_running()
    if seed is not None:
        os.environ["PL_GLOBAL_SEED"] = seed
    return context


def together(function: Callable[..., object], *arguments: Any, processes: int = 2) -> None:
    """Call ``function(rank, *arguments)`` in several processes that find each other as those of Lightning do.

    Raises:
        torch.multiprocessing.ProcessRaisedException: The first failure with its traceback; the others are ended.
    """
    server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, Path.cwd(), function, arguments)
    started = start_processes(_enter, given, nprocs=processes, join=False, start_method="forkserver")
    assert started is not None
    end = time.monotonic() + PATIENCE
    while not started.join(timeout=5):
        if time.monotonic() > end:
            for process in started.processes:
                process.kill()
            raise TimeoutError(f"the processes had not ended after {PATIENCE:.0f} s")


def _enter(rank: int, port: int, folder: Path, function: Callable[..., object], arguments: Sequence[Any]) -> None:
    os.chdir(folder)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    function(rank, *arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_command(arguments: list[str], *, processes: int = 2) -> None:
    """The command in several processes, as Lightning starts them for a distributed run; exports are read back there."""
    together(_command, arguments, processes=processes)


def _command(rank: int, arguments: list[str]) -> None:
    read_back_here()
    sys.argv = ["sparsight", *arguments]
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"the command ended with: {end.code}") from end


def launch_command(arguments: list[str]) -> None:
    """The command as a user gives it, in an interpreter of its own that starts the other processes."""
    run = [sys.executable, "-m", "sparsight", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
