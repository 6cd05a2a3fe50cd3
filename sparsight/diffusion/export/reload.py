"""Run as a script, in a process without this project: loads an export and computes its outputs for given inputs.

    python reload.py FOLDER PART QUESTIONS ANSWERS CODE

PART is ``unet`` or ``transformer``. QUESTIONS is a safetensors file of the denoiser's inputs, with dots in the names of
nested ones and a JSON list of absent ones under ``none``. CODE is 1 if the folder comes with code for PART. ANSWERS
will hold the outputs of the ``pipeline``'s denoiser, of the ``model`` loaded alone and, if there are such weights, of
its ``fp16`` variant, all computed in fp32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main(folder: str, part: str, given: str, outputs: str, code: str) -> None:
    """Load in every promised way, run, and write what came out."""
    import json

    import torch
    from diffusers import AutoModel, DiffusionPipeline
    from safetensors import safe_open
    from safetensors.torch import save_file

    inputs: dict[str, Any] = {}
    with safe_open(given, framework="pt") as file:
        named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        named |= dict.fromkeys(json.loads(file.metadata()["none"]))
    for name, value in named.items():
        group, _, key = name.rpartition(".")
        (inputs.setdefault(group, {}) if group else inputs)[key] = value

    @torch.no_grad()
    def computed(denoiser: Any) -> torch.Tensor:
        return denoiser(**inputs, return_dict=False)[0].contiguous()

    options = {"trust_remote_code": True} if code == "1" else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    results = {"pipeline": computed(pipeline.components[part])}
    results["model"] = computed(AutoModel.from_pretrained(folder, subfolder=part, **options))
    if any(".fp16." in path.name for path in Path(folder, part).iterdir()):
        half = AutoModel.from_pretrained(folder, subfolder=part, variant="fp16", torch_dtype=torch.float32, **options)
        results["fp16"] = computed(half)
    save_file(results, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
