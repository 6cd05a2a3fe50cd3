"""Run as a script, in a process without this project: loads an export and answers the questions put to it.

    python reload.py FOLDER PART QUESTIONS ANSWERS CODE REFUSED

PART is ``unet`` or ``transformer``. QUESTIONS is a safetensors file of the denoiser's inputs, with dots in the names of
nested ones and a JSON list of absent ones under ``none``. CODE is 1 if the folder comes with code for PART. REFUSED are
the names, with commas between, of packages that must not be imported. ANSWERS will hold the outputs of the
``pipeline``'s denoiser, of the ``model`` loaded alone and, if there are such weights, of its ``fp16`` variant, all
computed in fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Refuse(MetaPathFinder):
    """Makes imports of the given packages fail, though they may be installed."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise an ImportError for the packages, and leave others to the next finder."""
        if fullname.split(".")[0] in self.packages:
            raise ImportError(f"the export needs {fullname}, which is not part of it")


def main(folder: str, part: str, questions: str, answers: str, code: str, refused: str) -> None:
    """Load in every promised way, run, and write what came out."""
    sys.meta_path.insert(0, Refuse(refused.split(",")))
    import json

    import torch
    from diffusers import AutoModel, DiffusionPipeline
    from safetensors import safe_open
    from safetensors.torch import save_file

    inputs: dict[str, Any] = {}
    with safe_open(questions, framework="pt") as file:
        named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        named |= dict.fromkeys(json.loads(file.metadata()["none"]))
    for name, value in named.items():
        group, _, key = name.rpartition(".")
        (inputs.setdefault(group, {}) if group else inputs)[key] = value

    @torch.no_grad()
    def answer(denoiser: Any) -> torch.Tensor:
        return denoiser(**inputs, return_dict=False)[0].contiguous()

    options = {"trust_remote_code": True} if code == "1" else {}
    results = {"pipeline": answer(getattr(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), part))}
    results["model"] = answer(AutoModel.from_pretrained(folder, subfolder=part, **options))
    if any(".fp16." in path.name for path in Path(folder, part).iterdir()):
        half = AutoModel.from_pretrained(folder, subfolder=part, variant="fp16", torch_dtype=torch.float32, **options)
        results["fp16"] = answer(half)
    save_file(results, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
