"""What distilling published diffusion models takes of a device's memory, by estimate: no weights, no data, no GPU.

    python -m benchmarks.diffusion_memory             the table of docs/recipes.md
    python -m benchmarks.diffusion_memory --large     that of its recipes for large models there (minutes)

Denoiser and mixers alone: text encoders and VAE come on top. Runs print the whole of their own at their start.
"""

from __future__ import annotations

import argparse
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from blocks import DeltaConvBlock
from sparsight.command.arguments import read_config
from sparsight.common.measure.memory_table import GIB, MemoryEstimate
from sparsight.common.tables import markdown_table
from sparsight.diffusion.families.known import family_of, published
from sparsight.diffusion.measure.memory_estimate import estimate_memory
from sparsight.diffusion.surgery.replace import replace
from sparsight.diffusion.surgery.rest.low_rank import LoRA
from sparsight.diffusion.surgery.rest.rest import free_rest

PIXELS = {"sd15": 512, "sdxl": 1024, "pixart_sigma": 1024}
RECIPES = {  # by name of a config: the published model
    "flux_dev_24gb": "flux_dev",
    "flux_dev_80gb": "flux_dev",
    "sd35_medium_24gb": "sd35_medium",
    "sd35_medium_80gb": "sd35_medium",
    "wan_1_3b_24gb": "wan_1_3b",
    "wan_1_3b_80gb": "wan_1_3b",
    "wan_14b_24gb": "wan_14b",
    "wan_14b_80gb": "wan_14b",
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


def recipe_row(name: str) -> dict[str, str]:
    """GiB of a recipe's end-to-end step, with its batch, size and trained parts; nothing is averaged."""
    recipe = read_config(f"experiment/{name}")
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    trained, size = model.get("trained", {}), data.get("sampling", {}).get("size")
    mixer = partial(resolve_name(model["mixer"]["class_path"]), **model["mixer"]["init_args"])
    with torch.device("meta"):
        denoiser = published(RECIPES[name]).to(torch.bfloat16)
        denoiser.enable_gradient_checkpointing()
        shells = replace(denoiser, mixer, train_projections=trained.get("projections", False))
        if "lora" in trained:
            free_rest(denoiser, shells, [], LoRA(**trained["lora"]))
    found = estimate_memory(
        denoiser,
        objectives=["end_to_end"],
        batch=data["batch_size"],
        size=None if size is None else tuple(size),
        autocast=partial(torch.autocast, "cpu", torch.bfloat16),
        device=torch.device("cpu"),
    )
    frozen, trained, *training = found.standing.values()
    frozen -= spared_by_codes(denoiser) if model.get("loading", {}).get("quantization") else 0
    (activations,) = found.stages.values()
    counts = {
        "frozen": frozen,
        "trained, fp32": trained,
        "gradients and AdamW": sum(training),
        "activations": activations,
        "in all": frozen + trained + sum(training) + activations,
    }
    batch = {"recipe": f"`{name}`", "samples a step": str(data["batch_size"])}
    return batch | {key: f"{count / GIB:.1f}" for key, count in counts.items()}


def spared_by_codes(denoiser: Any) -> int:
    """Bytes that ``loading.quantization: int8`` spares of frozen layers in blocks: one a weight, less five a row."""
    blocks = [block for block in denoiser.modules() if type(block).__name__ in family_of(denoiser).blocks]
    layers = {layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    frozen = [layer.weight for layer in layers if layer.weight.dtype == torch.bfloat16]
    return sum(weight.numel() - 5 * len(weight) for weight in frozen if not weight.requires_grad)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the table of large models")
    large = parser.parse_args().large
    print(markdown_table([recipe_row(name) for name in RECIPES] if large else [row(name) for name in PIXELS]))


if __name__ == "__main__":
    main()
