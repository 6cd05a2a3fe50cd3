"""Triton on this machine: its language where it can be imported, and what is known of it before code is compiled.

Without Triton files with kernels can be imported, and their kernels cannot be launched.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch

from blocks.ops.optional import why_missing

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Machine(NamedTuple):
    """What is known of Triton before code is compiled, which could not ask.

    Attributes:
        problem: Why it cannot be imported; empty if it can.
        interpreted: Whether its interpreter stands in for a device, as ``TRITON_INTERPRET=1`` asks.
    """

    problem: str
    interpreted: bool


def this_machine() -> Machine:
    """This one."""
    if problem := why_missing("triton"):
        return Machine(problem, False)
    return Machine("", bool(import_module("triton").knobs.runtime.interpret))


def why_not_on(device: torch.device, machine: Machine) -> str:
    """Why no kernel can run on a device; empty if one can."""
    if machine.problem:
        return machine.problem
    if device.type == "cuda" or (device.type == "cpu" and machine.interpreted):
        return ""
    return f"a kernel runs on a CUDA device, not on {device.type}"


def _as_it_is(function: Any) -> Any:
    """A kernel that nobody can launch."""
    return function


tl: Any = None
jit: Any = _as_it_is
constant: Any = int
if not why_missing("triton"):
    tl = import_module("triton.language")
    jit, constant = import_module("triton").jit, tl.constexpr
