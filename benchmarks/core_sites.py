"""Measures what a core site costs beside its mixer, where nothing is compiled: processor time in microseconds.

The mixer is plain softmax attention, which calls torch's function as the attention itself does, so that the difference
is that of leading the call there. The attention is that of U-Nets, DiT and PixArt. Few tokens are mixed: what leading
costs does not depend on their number.

    python -m benchmarks.core_sites
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from diffusers.models.attention_processor import Attention

from blocks import Grid, Site, SoftmaxAttention
from sparsight.common.tables import format_table
from sparsight.diffusion.surgery.core_site import core_site

SITE = Site("transformer_blocks.0.attn1", channels=64, heads=4, head_dim=16, grid=Grid(4, 4))


def seconds(call: Callable[[], object], *, repeats: int, calls: int = 50) -> float:
    """Processor time of one call: the least of several means, since whatever else runs only adds."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.thread_time()
        for _ in range(calls):
            call()
        best = min(best, (time.thread_time() - begin) / calls)
    return best


def row(direction: str, *, repeats: int = 20) -> dict[str, float]:
    """Microseconds of one attention, and of the core site in its place, ``forward`` or with a ``backward`` pass."""
    torch.manual_seed(0)
    attention = Attention(SITE.channels, heads=SITE.heads, dim_head=SITE.head_dim).eval()
    replaced = core_site(attention, SoftmaxAttention(SITE))
    replaced.grid = SITE.grid
    hidden_BNC = torch.randn(2, SITE.grid.tokens, SITE.channels)
    torch.testing.assert_close(replaced(hidden_BNC), attention(hidden_BNC))

    def measured(module: torch.nn.Module) -> float:
        if direction == "backward":
            return 1e6 * seconds(lambda: module(hidden_BNC).sum().backward(), repeats=repeats)
        with torch.no_grad():
            return 1e6 * seconds(lambda: module(hidden_BNC), repeats=repeats)

    before, now = measured(attention), measured(replaced)
    return {"attention": before, "core site": now, "more": now - before}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="means of 50 calls, of which the least counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for direction in ("forward", "backward"):
        times = row(direction, repeats=options.repeats)
        rows.append({"pass": direction} | {f"{name} (us)": f"{value:.0f}" for name, value in times.items()})
    print(format_table(rows))


if __name__ == "__main__":
    main()
