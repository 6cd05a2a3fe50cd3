"""What distilling published diffusion models takes of a device's memory, by estimate: no weights, no data, no GPU.

    python -m benchmarks.diffusion_memory     the table of docs/recipes.md

Denoiser and mixers alone: text encoders and VAE come on top. Runs print the whole of their own at their start.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from blocks import DeltaConvBlock
from sparsight.common.measure.memory_table import GIB, MemoryEstimate
from sparsight.common.tables import markdown_table
from sparsight.diffusion.families.known import published
from sparsight.diffusion.measure.memory_estimate import estimate_memory
from sparsight.diffusion.surgery.replace import replace

PIXELS = {"sd15": 512, "sdxl": 1024, "pixart_sigma": 1024}


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


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(markdown_table([row(name) for name in PIXELS]))


if __name__ == "__main__":
    main()
