"""Whether a mixer computes what it should, in the precision and on the device it is about to be timed in.

Two comparisons, both with fresh random inputs on small grids, one of them odd and not square:

- with its reference in float64 on the CPU: the mixer's own ``reference`` method, of the same arguments as ``mix`` or
  ``forward``, if it has one (fused kernels need one), else the mixer itself in float64;
- where the mixer declares an exact limit: at that limit, with softmax attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.base import CoreMixer, Grid, SoftmaxMixer, TokenMixer
from sparsight.testing import apply_mixer, random_inputs, random_teacher, relative_l2

GRIDS = (Grid(16, 16), Grid(9, 7))
# float32 leaves room for TF32 products
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


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


@runtime_checkable
class Referenced(Protocol):
    """A mixer with a slow, obvious form of itself."""

    def reference(self, *arguments: Any) -> Tensor:
        """What ``mix``, or ``forward`` of a feature mixer, computes, from the same arguments."""
        ...


@torch.no_grad()
def verify(mixer: TokenMixer, *, dtype: torch.dtype, device: torch.device, grids: Sequence[Grid] = GRIDS) -> Verdict:
    """Compare a copy of the mixer in ``dtype`` on ``device`` with its reference; see the module's text."""
    against = "its reference" if _has_reference(mixer) else "itself in float64"
    fast, slow = copy.deepcopy(mixer).to(device, dtype), copy.deepcopy(mixer).to("cpu", torch.float64)
    errors = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for grid in grids:
            inputs = [part.to(dtype) for part in random_inputs(mixer, grid)]
            moved, exact = [part.to(device) for part in inputs], [part.double() for part in inputs]
            output = _attempt(partial(apply_mixer, fast, moved, grid))
            if isinstance(output, str):
                return Verdict(against, float("inf"), f"does not run in {dtype} on {device.type}: {output}")
            expected = _attempt(partial(_reference, slow, exact, grid))
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
        return str(error).splitlines()[0]


def _has_reference(mixer: TokenMixer) -> TypeGuard[Referenced]:
    """A softmax mixer's reference tells the mass of its keys, too, in fp32: it is compared with itself."""
    return isinstance(mixer, Referenced) and not isinstance(mixer, SoftmaxMixer)


def _reference(mixer: TokenMixer, inputs: list[Tensor], grid: Grid) -> Tensor:
    scale = (mixer.site.head_dim**-0.5,) if isinstance(mixer, CoreMixer) else ()
    if not _has_reference(mixer):
        return apply_mixer(mixer, inputs, grid)
    return mixer.reference(*inputs, grid, *scale)


def _error_at_exact_limit(mixer: TokenMixer, grid: Grid, dtype: torch.dtype, device: torch.device) -> float | None:
    options = type(mixer).exact_limit(mixer.site, grid)
    if options is None:
        return None
    exact = type(mixer)(mixer.site, **options)
    if isinstance(exact, CoreMixer):
        inputs = [part.to(dtype) for part in random_inputs(exact, grid)]
        q, k, v = (part.double() for part in inputs)
        expected = F.scaled_dot_product_attention(q, k, v, scale=mixer.site.head_dim**-0.5)
    else:
        weights, samples = random_teacher(mixer.site, grid)
        exact.init_from_teacher(weights, [samples])
        inputs, expected = [samples.inputs.to(dtype)], samples.outputs
    return _error(apply_mixer(exact.to(device, dtype), [part.to(device) for part in inputs], grid), expected)


def _error(output: Tensor, expected: Tensor) -> float:
    """Relative L2 error, infinite where the output is not finite, so that it never passes."""
    return relative_l2(output.cpu(), expected) if output.isfinite().all() else float("inf")
