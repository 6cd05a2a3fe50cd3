"""Counts the calls that one site makes under bf16-mixed: forward, and through a layer-wise step.

A call is an operation of ATen that computes something, as it reaches the backend: below autograd and autocast, without
views, allocations and questions. On a GPU it is a launch or two. An operation of ours counts as what it does: calls of
ATen and launches of Triton kernels. The teacher is in bf16, the mixer's weights are in fp32, the default preset stands
at a 16x16 grid. No time is measured, so a busy machine gives the same numbers. Without a GPU it is Triton's interpreter
that launches; it does not multiply bf16, so its form is counted in fp16 there, on a grid of 8x8.

    python -m benchmarks.launches          exits with 1 where a form makes more calls than its target
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which some of the following do

from blocks import DeltaConvBlock, Grid, Site
from blocks.ops import squares
from blocks.ops.optional import why_missing
from sparsight.common.tables import format_table
from sparsight.diffusion.surgery.site_error import mean_squares
from sparsight.diffusion.surgery.student import StudentAttention

GRID = Grid(16, 16)
SITE = Site("transformer_blocks.0.attn1", channels=128, heads=4, head_dim=32, grid=GRID)
CASTS = ("_to_copy", "_foreach_copy_")
NO_WORK = (
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "_unsafe_view",
    "detach",
    "promote_types",
    "is_same_size",
)
INTERPRETER = ("set_", "copy_")
"""How Triton's interpreter reads tensors; on a GPU there is nothing of it."""
TRITON = "triton kernels"
TARGETS: dict[str, tuple[int, int | None]] = {"few calls": (16, None), TRITON: (3, 12)}
"""Most calls of a form's forward pass, without the one that casts its weights, and of the layer-wise step after it."""


class Calls(TorchDispatchMode):
    """Counts operations by name.

    Args:
        ours: Operations that are counted as what these functions do.
        passed_over: Operations that are not counted, beside those of ``NO_WORK``.
    """

    def __init__(self, ours: Mapping[str, Callable[..., Any]] | None = None, passed_over: Sequence[str] = ()) -> None:
        super().__init__()
        self.passed_over = (*NO_WORK, *passed_over)
        self.names: Counter[str] = Counter()
        self.ours = ours or {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if own := self.ours.get(func.overloadpacket._qualified_op_name):
            with self:
                return own(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in self.passed_over:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class LayerByLayer(DeltaConvBlock):
    """A delta convolution in its plain form, with the hidden state cast by the site."""

    autocasts = False

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """As ``DeltaConvBlock.reference``."""
        return self.reference(hidden_BNC, grid)


FORMS: dict[str, Callable[[Site], DeltaConvBlock]] = {
    "layer by layer": LayerByLayer,
    "few calls": DeltaConvBlock,
    TRITON: partial(DeltaConvBlock, backend="triton"),
}


def count(form: str, *, batch: int = 2) -> dict[str, Counter[str]]:
    """Calls of a site's forward pass, and of loss and backward pass after it, by name of the operation.

    Raises:
        ImportError: The form is that of Triton, which is not installed.
    """
    torch.manual_seed(0)
    device = "cuda" if form == TRITON and torch.cuda.is_available() else "cpu"
    interpreted = form == TRITON and device == "cpu"
    grid, dtype = (Grid(8, 8), torch.float16) if interpreted else (GRID, torch.bfloat16)
    site = replace(SITE, channels=32, head_dim=8, grid=grid) if interpreted else SITE
    inside = INTERPRETER if interpreted else ()
    forward, rest = (Calls(_ours() if form == TRITON else None, inside) for _ in range(2))
    student = StudentAttention(FORMS[form](site)).to(device)
    student.grid = grid
    hidden, target = torch.randn(2, batch, grid.tokens, site.channels, device=device).to(dtype)
    with torch.autocast(device, dtype):
        with forward, _launches_in(forward, form):
            output = student(hidden)
        seed = torch.ones((), device=device)
        with rest, _launches_in(rest, form):
            error, _ = mean_squares(output, target, fused=form == TRITON)
            error.backward(seed)  # a real step divides the errors of all sites at once
    return {"forward": forward.names, "rest": rest.names}


def _ours() -> dict[str, Callable[..., Any]]:
    """What operations of ours do, by their names."""
    from blocks.ops.delta_conv import triton

    return {triton.FORWARD._qualname: triton.compute, triton.BACKWARD._qualname: triton.compute_gradients}


@contextmanager
def _launches_in(calls: Calls, form: str) -> Iterator[None]:
    """Count launches of Triton kernels beside calls of ATen."""
    kernels = {}
    if form == TRITON:
        from blocks.ops.delta_conv import triton_backward, triton_forward

        kind = import_module("triton.runtime.jit").KernelInterface
        found = {**vars(triton_forward), **vars(triton_backward), **vars(squares)}
        kernels = {name: each for name, each in found.items() if isinstance(each, kind)}
    for name, kernel in kernels.items():
        kernel.add_pre_run_hook(lambda *args, name=name, **options: calls.names.update([name]))
    try:
        yield
    finally:
        for kernel in kernels.values():
            kernel.pre_run_hooks.pop()


def rows() -> list[dict[str, Any]]:
    """What every form needs, and whether that is within its target."""
    found = []
    for form in FORMS:
        if form == TRITON and why_missing("triton"):
            continue
        counted = count(form)
        forward, rest = counted["forward"], counted["rest"].total()
        most, most_after = TARGETS.get(form, (None, None))
        work = forward.total() - forward["_foreach_copy_"]
        found.append(
            {
                "form": form,
                "forward": forward.total(),
                "of them casts": sum(forward[name] for name in CASTS),
                "without the cast of weights": work,
                "target": most,
                "loss and backward": rest,
                "its target": most_after,
                "within": (most is None or work <= most) and (most_after is None or rest <= most_after),
            }
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; end with 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="list the operations, too")
    options = parser.parse_args(arguments)
    found = rows()
    print(format_table([{name: "" if value is None else str(value) for name, value in row.items()} for row in found]))
    for form in (row["form"] for row in found) if options.names else ():
        print(f"\n{form}")
        for part, names in count(form).items():
            print(f"  {part}: " + ", ".join(f"{name} {number}" for name, number in names.most_common()))
    sys.exit(not all(row["within"] for row in found))


if __name__ == "__main__":
    main()
