"""What every mixer takes at the sites of published models: FLOPs by formula, and times of cores on this processor.

    python -m benchmarks.mixer_speed            FLOPs, without weights or memory (minutes)
    python -m benchmarks.mixer_speed --time     times beside fused attention, at the sites of the shipped teacher

A row of the first table is how many times fewer FLOPs the whole denoiser takes than with attention. Its first rows are
the limits: a mixer that costs nothing, beside attention's projections (core mixers keep them) and in place of them.
FLOPs are no times: on a device, memory and launches count, too (docs/gpu.md).
Times are of the core alone, batch 1, fp32, one thread, processor time: medians of calls in turn with attention's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.study_arms import ALL_MIXERS, PUBLISHED, factory_of, plain_of
from blocks import CoreMixer, Grid, Site, TokenMixer
from sparsight.common.tables import markdown_table
from sparsight.diffusion.families.known import published
from sparsight.diffusion.measure.flops import attention_flops, count_flops, mixer_flops
from sparsight.diffusion.surgery.sites import find_sites, probe_grids

MODELS: dict[str, tuple[str, tuple[int, ...]]] = {  # title: published model, sides in model space
    "SD1.5, 512": ("sd15", (64, 64)),
    "SD1.5, 1024": ("sd15", (128, 128)),
    "SDXL, 1024": ("sdxl", (128, 128)),
    "SDXL, 2048": ("sdxl", (256, 256)),
    "PixArt-Sigma, 1024": ("pixart_sigma", (128, 128)),
    "DiT-XL/2, 512": ("dit_xl_2", (64, 64)),
    "FLUX.1 dev, 1024": ("flux_dev", (128, 128)),
    "Wan 1.3 B, 81 x 480 x 832": ("wan_1_3b", (21, 60, 104)),
}
ARMS = {"delta_conv_default": PUBLISHED["delta_conv_default"]} | ALL_MIXERS
LIMITS: dict[str, Callable[[Site], int]] = {  # what is saved at a site
    "core free of cost": lambda site: 4 * site.grid.tokens**2 * site.heads * site.head_dim,
    "site free of cost": lambda site: attention_flops(site, site.grid),  # feature mixers need no projections
}
SIDES = (16, 32, 64, 128)  # of the grids that are timed
EXPONENT = (Grid(64, 64), Grid(256, 256))  # 4 096 and 65 536 tokens


def change(mixer: Callable[[Site], TokenMixer], sites: Mapping[Site, int]) -> int | None:
    """FLOPs more than with attention, at so many sites of each kind; ``None`` if one cannot be served."""
    total = 0
    for site, count in sites.items():
        with torch.device("meta"):
            made = mixer(site)
        if len(site.grid.sizes) not in made.served_axes:
            return None
        total += count * (mixer_flops(made, site.grid) - attention_flops(site, site.grid))
    return total


def kinds(denoiser: Any, size: tuple[int, ...]) -> dict[Site, int]:
    """Sites without their paths, on their grids at a size, and how many there are of each."""
    grids = probe_grids(denoiser, size)
    return dict(
        Counter(
            Site("site", site.channels, site.heads, site.head_dim, grids[site.path], site.text)
            for site in find_sites(denoiser)
        )
    )


def exponent(flops: Callable[[Grid], int]) -> float:
    """By which power of the tokens FLOPs grow."""
    small, large = EXPONENT
    return math.log(flops(large) / flops(small)) / math.log(large.tokens / small.tokens)


def flops_rows(titles: Sequence[str], arms: Sequence[str]) -> list[dict[str, str]]:
    """A row for a mixer that costs nothing, and for every arm."""
    wholes: dict[str, tuple[int, dict[Site, int]]] = {}
    for title in titles:
        name, size = MODELS[title]
        with torch.device("meta"):
            denoiser = published(name)
        wholes[title] = count_flops(denoiser, size=size), kinds(denoiser, size)
    rows = []
    for name, saved in LIMITS.items():
        row = {"mixer": name}
        for title, (whole, sites) in wholes.items():
            row[title] = f"{whole / (whole - sum(saved(site) * count for site, count in sites.items())):.2f}x"
        rows.append(row | {"exponent": ""})
    line = Site("site", channels=640, heads=10, head_dim=64, grid=EXPONENT[0])
    for arm in arms:
        mixer = factory_of(plain_of(ARMS[arm]))
        row = {"mixer": arm}
        for title, (whole, sites) in wholes.items():
            more = change(mixer, sites)
            row[title] = "" if more is None else f"{whole / (whole + more):.2f}x"
        with torch.device("meta"):
            made = mixer(line)
        rows.append(row | {"exponent": f"{exponent(made.flops):.2f}"})
    return rows


@torch.inference_mode()
def timed_row(arm: str, *, sides: Sequence[int], runs: int) -> dict[str, str]:
    """How many times faster than fused attention a core is on square grids of these sides, and its exponent."""
    row, times = {"mixer": arm}, []
    for side in sides:
        site = Site("transformer_blocks.0.attn1", channels=128, heads=4, head_dim=32, grid=Grid(side, side))
        mixer = factory_of(plain_of(ARMS[arm]))(site).eval()
        if not isinstance(mixer, CoreMixer):
            return {}
        tokens = torch.randn(3, 1, side * side, site.channels)
        q, k, v = (part.unflatten(-1, (site.heads, -1)).transpose(1, 2) for part in tokens)
        calls: list[Callable[[], Tensor]] = [
            lambda: F.scaled_dot_product_attention(q, k, v),  # noqa: B023  (called in this round alone)
            lambda: mixer(q, k, v, site.grid, site.head_dim**-0.5),  # noqa: B023
        ]
        taken: list[list[float]] = [[], []]
        for _ in range(max(3, runs * 32 // side)):
            for call, seconds in zip(calls, taken, strict=True):
                begin = time.thread_time()
                call()
                seconds.append(time.thread_time() - begin)
        attention, own = (median(seconds) for seconds in taken)
        row[f"{side * side} tokens"] = f"{attention / own:.2f}x"
        times.append(own)
    last = math.log(times[-1] / times[-2]) / math.log((sides[-1] / sides[-2]) ** 2)
    return row | {"exponent": f"{last:.2f}"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="times of cores in place of FLOPs")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="of grids that are timed")
    parser.add_argument("--runs", type=int, default=40, help="calls at 32 x 32 tokens; more or fewer at others")
    options = parser.parse_args(arguments)
    if options.time:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        timed = (timed_row(arm, sides=options.sides, runs=options.runs) for arm in options.arms)
        rows = [row for row in timed if row]
    else:
        rows = flops_rows(options.models, options.arms)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
