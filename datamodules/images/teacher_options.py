"""Options of samples that a teacher draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsight.common.quantised.weights import Quantisation
from sparsight.diffusion.model.loading import PipelineLoading


@dataclass(frozen=True, kw_only=True)
class TeacherSampling:
    """How a teacher draws what is trained on.

    Args:
        steps: Sampler steps.
        guidance_scale: Guidance scale; 1 is none and halves the work. If not given, it is that of the module's
            sampling in the command, and 2 in Python.
        size: Height and width in model space, behind frames for video; ``null`` is what the teacher was made for.
    """

    steps: int = 20
    guidance_scale: float | None = None
    size: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSamplesLoading(PipelineLoading):
    """How the pipeline of a teacher is read that draws, and what it is held in.

    Args:
        dtype: Precision of the denoiser and the text encoders; in the command ``model.loading.dtype`` if not given, and
            in Python the libraries' choice.
        quantization: ``int8`` draws with frozen linear layers in 8 bits (torchao); in the command
            ``model.loading.quantization`` if not given.
        revision: Git revision on the hub.
        variant: Weight variant, e.g. ``fp16``.
        trust_remote_code: Run code that comes with the teacher.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    quantization: Quantisation | None = None
