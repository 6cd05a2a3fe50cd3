"""Counts the calls that one site makes under bf16-mixed: forward, and through a layer-wise step.

A call is an operation of ATen that computes something, as it reaches the backend: below autograd and autocast, without
views, allocations and questions. On a GPU it is a launch or two. The teacher is in bf16, the mixer's weights are in
fp32, the default preset stands at a 16x16 grid. No time is measured, so a busy machine gives the same numbers.

    python -m benchmarks.launches          exits with 1 where a form makes more calls than its target
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blocks import DeltaConvBlock, Grid, Site
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
TARGETS = {"few calls": 16}
"""Most calls of a form's forward pass, without the one that casts its weights."""


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_WORK:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class LayerByLayer(DeltaConvBlock):
    """A delta convolution in its plain form, with the hidden state cast by the site."""

    autocasts = False

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """As ``DeltaConvBlock.reference``."""
        return self.reference(hidden_BNC, grid)


FORMS: dict[str, Callable[[Site], DeltaConvBlock]] = {"layer by layer": LayerByLayer, "few calls": DeltaConvBlock}


def count(form: str, *, batch: int = 2) -> dict[str, Counter[str]]:
    """Calls of a site's forward pass, and of loss and backward pass after it, by name of the operation."""
    torch.manual_seed(0)
    student = StudentAttention(FORMS[form](SITE))
    student.grid = GRID
    hidden, target = torch.randn(2, batch, GRID.tokens, SITE.channels).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        with Calls() as forward:
            output = student(hidden)
        with Calls() as rest:
            error, power = mean_squares(output, target)
            (error / power).backward()
    return {"forward": forward.names, "rest": rest.names}


def rows() -> list[dict[str, Any]]:
    """What every form needs, and whether that is within its target."""
    found = []
    for form in FORMS:
        counted = count(form)
        forward, target = counted["forward"], TARGETS.get(form)
        weights = forward["_foreach_copy_"]
        work = forward.total() - weights
        found.append(
            {
                "form": form,
                "forward": forward.total(),
                "of them casts": sum(forward[name] for name in CASTS),
                "without the cast of weights": work,
                "loss and backward": counted["rest"].total(),
                "target": target,
                "within": target is None or work <= target,
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
    for form in FORMS if options.names else ():
        print(f"\n{form}")
        for part, names in count(form).items():
            print(f"  {part}: " + ", ".join(f"{name} {number}" for name, number in names.most_common()))
    sys.exit(not all(row["within"] for row in found))


if __name__ == "__main__":
    main()
