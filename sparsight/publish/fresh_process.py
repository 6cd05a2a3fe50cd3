"""Running a script where this project is not, and comparing what came out with what was expected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparsight.publish import refuse

EXACT = 1e-4
"""Largest relative L2 difference when everything is computed in fp32 on the CPU."""
ROUNDED = 5e-2
"""Largest relative L2 difference where one side has weights or arithmetic of lower precision, or another device."""
REFUSED = ("sparsight", "blocks", "callbacks", "datamodules", "lightning_modules", "lightning", "pytorch_lightning")


def run_fresh(script: str, arguments: Sequence[str], *, scratch: str, refused: Iterable[str] = REFUSED) -> None:
    """Run a script of ours by itself, offline.

    Args:
        script: Its file.
        arguments: What it is called with.
        scratch: An empty folder for it.
        refused: Packages that it cannot import.

    Raises:
        RuntimeError: It failed; the message holds what it said.
    """
    launcher, copied = (shutil.copy(file, scratch) for file in (refuse.__file__, script))  # out of our own folders
    surroundings = {key: value for key, value in os.environ.items() if key != "DIFFUSERS_DISABLE_REMOTE_CODE"}
    surroundings |= {"HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, launcher, ",".join(sorted(refused)), copied, *arguments]
    process = subprocess.run(command, cwd=scratch, env=surroundings, capture_output=True, text=True)
    if process.returncode != 0:
        raise RuntimeError(f"the export does not load in a fresh process:\n{process.stderr[-3000:]}")


def relative_l2(output: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; the plain norm if that is zero."""
    difference, scale = torch.linalg.vector_norm(output.float() - expected), torch.linalg.vector_norm(expected)
    return float(difference / scale) if scale > 0 else float(difference)
