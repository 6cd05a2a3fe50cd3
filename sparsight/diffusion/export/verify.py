"""Loading an export where this project is not, and comparing its outputs with those of the student in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsight.diffusion.export import reload
from sparsight.publish.fresh_process import EXACT, REFUSED, ROUNDED, relative_l2, run_fresh


def verify(
    folder: Path,
    part: str,
    inputs: dict[str, Any],
    expected: Tensor,
    *,
    exact: bool,
    has_code: bool,
    mixers: Sequence[str],
) -> dict[str, float]:
    """Load an exported folder in a fresh process and compare.

    Args:
        folder: Pipeline folder.
        part: ``unet`` or ``transformer``.
        inputs: Keyword arguments of the denoiser.
        expected: What it must give, (B, C, H, W).
        exact: Whether ``expected`` was computed in fp32 on the CPU.
        has_code: Whether the folder comes with code for the denoiser.
        mixers: Modules that the mixers were defined in; they must not be needed either.

    Returns:
        Relative L2 difference of the ``pipeline``'s denoiser, the ``model`` alone and its ``fp16`` weights.

    Raises:
        RuntimeError: The folder does not load, or its outputs differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, outputs = Path(scratch, "inputs.safetensors"), Path(scratch, "outputs.safetensors")
        write_questions(inputs, given)
        run_fresh(
            reload.__file__,
            [str(folder.resolve()), part, str(given), str(outputs), str(int(has_code))],
            scratch=scratch,
            refused={*REFUSED, *(name.split(".")[0] for name in mixers)},
        )
        errors = {name: relative_l2(output, expected) for name, output in load_file(outputs).items()}
    for name, error in errors.items():
        allowed = EXACT if exact and name != "fp16" else ROUNDED
        if not error <= allowed:  # catches nan as well
            raise RuntimeError(
                f"the export answers differently after reloading ({name}): relative L2 difference {error:.2e}, allowed "
                f"{allowed:.0e}"
            )
    return errors


def is_exact(denoiser: nn.Module) -> bool:
    """Whether a denoiser computes in fp32 on the CPU."""
    return all(p.dtype == torch.float32 and p.device.type == "cpu" for p in denoiser.parameters())


def write_questions(inputs: dict[str, Any], path: Path) -> None:
    """Write inputs, nested once at most, as a safetensors file; floats in fp32."""
    named: dict[str, Tensor | None] = {}
    for name, value in inputs.items():
        named |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    tensors = {
        name: value.float().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in named.items()
        if value is not None
    }
    save_file(tensors, path, {"none": json.dumps([name for name, value in named.items() if value is None])})
