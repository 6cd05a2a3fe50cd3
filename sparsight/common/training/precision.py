"""bfloat16 where the hardware computes in it: a processor without its instructions emulates it, ten times slower."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16-mixed", "32-true"]


def processor_computes_in_bf16() -> bool:
    """Whether torch's kernels on this processor have instructions for bfloat16.

    On x86 those are AVX512-BF16 and AMX, which torch uses with its AVX-512 kernels only (the environment variable
    ``ATEN_CPU_CAPABILITY`` can forbid them); on ARM the extension BF16.
    """
    found = torch.cpu.get_capabilities()
    if found["architecture"] != "x86_64":
        return bool(found.get("bf16"))
    kernels = torch.backends.cpu.get_cpu_capability()
    return kernels.startswith("AVX512") and bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def precision_that_pays(accelerator: str) -> tuple[Precision, str]:
    """``bf16-mixed`` if the hardware computes in bfloat16, ``32-true`` if not, and the reason in words.

    Args:
        accelerator: As Lightning names them: ``cpu``, ``gpu``, ``cuda``, ``auto``, ...
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU computes in bfloat16"
        return "32-true", "this GPU does not compute in bfloat16"
    if accelerator not in ("auto", "cpu"):
        return "32-true", f"nothing is known of bfloat16 on the accelerator {accelerator}"
    if processor_computes_in_bf16():
        return "bf16-mixed", "this processor has instructions for bfloat16"
    return "32-true", "this processor has no instructions for bfloat16, which would be several times slower"
