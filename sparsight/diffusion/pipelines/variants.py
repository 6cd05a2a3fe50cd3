"""Variants of weights in a pipeline's folder, such as fp16: which parts have which."""

from __future__ import annotations

import re
from pathlib import Path

from sparsight.common.text import read_json

# diffusion_pytorch_model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)


def variants_of(part: Path) -> set[str | None]:
    """Variants of the weights in the folder of a part; ``None`` for plain ones."""
    found = (WEIGHTS.fullmatch(path.name) for path in part.iterdir())
    return {match["variant"] for match in found if match is not None}


def weights_of(part: Path, variant: str | None) -> list[Path]:
    """Safetensors files of a denoiser's folder, one or several: those of the variant, or else the plain ones."""
    for infix in dict.fromkeys((f".{variant}" if variant else "", "")):
        single = part / f"diffusion_pytorch_model{infix}.safetensors"
        index = part / f"diffusion_pytorch_model.safetensors.index{infix}.json"
        if single.is_file():
            return [single]
        if index.is_file():
            return [part / Path(shard).name for shard in sorted(set(read_json(index)["weight_map"].values()))]
    return []


def check_variant(folder: Path, variant: str | None) -> None:
    """Make sure that every part of a pipeline has the weights that are asked for, or plain ones in their place.

    Raises:
        FileNotFoundError: A part has neither; the message names the variants that it has.
    """
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        there = variants_of(part)
        if not there or there & {variant, None}:
            continue
        names = " or ".join(sorted(str(name) for name in there))
        asked = "plain weights" if variant is None else f"weights of variant {variant}, and no plain ones"
        raise FileNotFoundError(f"{folder} has no {asked} of its {part.name}: set variant to {names}")
