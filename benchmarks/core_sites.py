"""Measures what a core site costs beside its mixer, where nothing is compiled: processor time in microseconds a site.

The mixer is plain softmax attention, which calls torch's function as the attention itself does, and the denoisers are
tiny ones of every family, so that nearly all of the difference is that of leading the calls there. At a joint site
(SD3.5, FLUX.1) text and image are attended to apart and brought under one softmax: more calls, whatever their size.

    python -m benchmarks.core_sites
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.family_cases import CASES, Case
from blocks import SoftmaxAttention
from sparsight.common.tables import format_table
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.replace import finalize, replace


def seconds(call: Callable[[], object], *, repeats: int, calls: int = 10) -> float:
    """Processor time of one call: the least of several means, since whatever else runs only adds."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        best = min(best, (time.thread_time() - begin) / calls)
    return best


def row(case: Case, *, repeats: int) -> dict[str, str]:
    """Microseconds more for each site of a family's denoiser, of a forward pass and of one with its backward pass."""
    torch.manual_seed(0)
    denoiser = case.made()
    inputs = example_inputs(denoiser, batch=1, size=case.sizes[0])

    def output() -> torch.Tensor:
        return denoiser(**inputs, return_dict=False)[0]

    def measured() -> tuple[float, float]:
        with torch.no_grad():
            forward = seconds(output, repeats=repeats)
        return forward, seconds(lambda: output().sum().backward(), repeats=repeats)

    before = measured()
    sites = len(replace(denoiser, SoftmaxAttention))
    finalize(denoiser)
    denoiser.requires_grad_(True)  # as before surgery
    more = [1e6 * (now - then) / sites for now, then in zip(measured(), before, strict=True)]
    return {"family": case.name, "sites": str(sites)} | {
        f"{name} (us)": f"{value:.0f}" for name, value in zip(("forward", "with backward"), more, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="means of 10 calls, of which the least counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(format_table([row(case, repeats=options.repeats) for case in CASES]))


if __name__ == "__main__":
    main()
