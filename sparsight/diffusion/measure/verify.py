"""Whether a mixer computes what it should, in the precision and on the device it is about to be timed in.

Two comparisons, both with fresh random inputs on small grids, one of them odd and not square:

- with its reference in float64 on the CPU: the mixer's own ``reference`` method if it has one (fused kernels need one),
  else the mixer itself in float64;
- where the mixer declares an exact limit: at that limit, with softmax attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from blocks.base import Grid, TokenMixer
from sparsight.common.errors import first_line
from sparsight.testing import Referenced, apply_mixer, apply_reference, at_exact_limit, random_inputs, relative_l2

GRIDS = (Grid(16, 16), Grid(9, 7))
# float64 leaves room for masses of keys, which are told in float32, and float32 for TF32 products
TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Verdict:
    """Outcome of a comparison.

    Attributes:
        against: What the mixer was compared with.
        error: Largest relative L2 error; infinite if an output was not finite or could not be computed.
        refusal: Why the mixer must not be timed; empty if it may.
    """

    against: str
    error: float
    refusal: str = ""


@torch.no_grad()
def verify(mixer: TokenMixer, *, dtype: torch.dtype, device: torch.device, grids: Sequence[Grid] = GRIDS) -> Verdict:
    """Compare a copy of the mixer in ``dtype`` on ``device`` with its reference; see the module's text."""
    against = "its reference" if isinstance(mixer, Referenced) else "itself in float64"
    fast, slow = copy.deepcopy(mixer).to(device, dtype), copy.deepcopy(mixer).to("cpu", torch.float64)
    obvious: Callable[..., Tensor] = apply_reference if isinstance(slow, Referenced) else apply_mixer
    errors = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for grid in grids:
            inputs = [part.to(dtype) for part in random_inputs(mixer, grid)]
            moved, exact = [part.to(device) for part in inputs], [part.double() for part in inputs]
            output = _attempt(partial(apply_mixer, fast, moved, grid))
            if isinstance(output, str):
                return Verdict(against, float("inf"), f"does not run in {dtype} on {device.type}: {output}")
            expected = _attempt(partial(obvious, slow, exact, grid))
            if isinstance(expected, str):
                remedy = "give it a `reference` method that runs in float64 on a CPU"
                return Verdict("nothing", float("inf"), f"unverified, {remedy}: {expected}")
            errors.append(_error(output, expected))
        at_limit = [_error_at_exact_limit(mixer, grid, dtype, device) for grid in grids]
    declared = [error for error in at_limit if error is not None]
    against += " and softmax at its exact limit" if declared else ""
    worst, limit = max(errors + declared), TOLERANCES[dtype]
    refusal = "" if worst <= limit else f"does not match {against}: relative L2 error {worst:.1e}, allowed {limit:g}"
    return Verdict(against, worst, refusal)


def _attempt(call: Callable[[], Tensor]) -> Tensor | str:
    """The output, or the first line of the error."""
    try:
        return call()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return first_line(error)


def _error_at_exact_limit(mixer: TokenMixer, grid: Grid, dtype: torch.dtype, device: torch.device) -> float | None:
    found = at_exact_limit(mixer, grid, dtype=dtype)
    if found is None:
        return None
    exact, inputs, expected = found
    return _error(apply_mixer(exact.to(device, dtype), [part.to(device) for part in inputs], grid), expected)


def _error(output: Tensor, expected: Tensor) -> float:
    """Relative L2 error, infinite where the output is not finite, so that it never passes."""
    return relative_l2(output.cpu(), expected) if output.isfinite().all() else float("inf")
