"""What distilling published diffusion models takes of a device's memory, by estimate: no weights, no data, no GPU.

    python -m benchmarks.diffusion_memory             the table of docs/recipes.md
    python -m benchmarks.diffusion_memory --large     that of FLUX.1, Stable Diffusion 3.5 and Wan there (minutes)

Denoiser and mixers alone: text encoders and VAE come on top. Runs print the whole of their own at their start.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from blocks import DeltaConvBlock, DiscAttention, TileAttention
from sparsight.common.measure.memory_table import GIB, MemoryEstimate
from sparsight.common.tables import markdown_table
from sparsight.diffusion.families.known import published
from sparsight.diffusion.measure.memory_estimate import estimate_memory
from sparsight.diffusion.surgery.replace import replace

PIXELS = {"sd15": 512, "sdxl": 1024, "pixart_sigma": 1024}
DISC, TILE = partial(DiscAttention, radius=8), partial(TileAttention, tile=(7, 10, 13))
CONV = partial(DeltaConvBlock, preset="default")
LARGE: dict[str, tuple[str, Any, bool]] = {  # of a published model: mixer, and whether projections are trained
    "FLUX.1 [dev], 1024 pixels, discs": ("flux_dev", DISC, True),
    "FLUX.1 [dev], 1024 pixels, delta convolutions": ("flux_dev", CONV, False),
    "SD3.5-medium, 1024 pixels, discs": ("sd35_medium", DISC, True),
    "Wan 1.3 B, 81 frames of 480x832, tiles": ("wan_1_3b", TILE, True),
    "Wan 14 B, 81 frames of 480x832, tiles": ("wan_14b", TILE, True),
}


def estimate(name: str, *, checkpointing: bool) -> MemoryEstimate:
    """As the docs say: a mixer at every site, bfloat16 and ``bf16-mixed``, one sample a batch, EMA, AdamW."""
    with torch.device("meta"):
        denoiser = published(name).to(torch.bfloat16)
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        replace(denoiser, partial(DeltaConvBlock, preset="default"))
    return estimate_memory(
        denoiser,
        objectives=["layerwise", "end_to_end"] if checkpointing else ["end_to_end"],
        batch=1,
        averaged=True,
        autocast=partial(torch.autocast, "cpu", torch.bfloat16),
        device=torch.device("cpu"),
    )


def row(name: str) -> dict[str, str]:
    """GiB of one model."""
    recomputing, plain = (estimate(name, checkpointing=each) for each in (True, False))
    layerwise, end_to_end = recomputing.stages.values()
    counts = {
        "standing": sum(recomputing.standing.values()),
        "layerwise, batch 1": layerwise,
        "end to end, batch 1": end_to_end,
        "the same without checkpointing": max(plain.stages.values()),
    }
    return {"": f"{name}, {PIXELS[name]} pixels"} | {key: f"{count / GIB:.2f}" for key, count in counts.items()}


def large_row(title: str) -> dict[str, str]:
    """GiB of one large model in an end-to-end step that recomputes its blocks; nothing is averaged."""
    name, mixer, train_projections = LARGE[title]
    with torch.device("meta"):
        denoiser = published(name).to(torch.bfloat16)
        denoiser.enable_gradient_checkpointing()
        replace(denoiser, mixer, train_projections=train_projections)
    found = estimate_memory(
        denoiser,
        objectives=["end_to_end"],
        batch=1,
        autocast=partial(torch.autocast, "cpu", torch.bfloat16),
        device=torch.device("cpu"),
    )
    frozen, trained, *training = found.standing.values()
    (activations,) = found.stages.values()
    counts = {
        "frozen, bfloat16": frozen,
        "trained, fp32": trained,
        "gradients and AdamW": sum(training),
        "activations": activations,
        "in all": sum(found.standing.values()) + activations,
    }
    return {"": title} | {key: f"{count / GIB:.1f}" for key, count in counts.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the table of large models")
    large = parser.parse_args().large
    print(markdown_table([large_row(title) for title in LARGE] if large else [row(name) for name in PIXELS]))


if __name__ == "__main__":
    main()
