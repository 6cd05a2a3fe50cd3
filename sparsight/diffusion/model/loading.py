"""How a pipeline of a denoiser is read: options of ``from_pretrained``, by its names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsight.common.disk.loading import Loading
from sparsight.common.quantised.loading import FrozenLoading


@dataclass(frozen=True, kw_only=True)
class PipelineLoading(Loading):
    """Which files of a pipeline are meant, and whether code among them runs.

    Args:
        revision: Git revision on the hub.
        variant: Weight variant, e.g. ``fp16``.
        trust_remote_code: Run code that comes with the pipeline; of a student that is trained further, import mixers
            that it alone names.
    """

    variant: str | None = None

    @property
    def source(self) -> dict[str, Any]:
        """All three, as arguments of ``load_pipeline``."""
        return {**super().source, "variant": self.variant}


@dataclass(frozen=True, kw_only=True)
class TeacherLoading(FrozenLoading, PipelineLoading):
    """How the pipeline of a teacher is read, and what it is held in.

    Args:
        dtype: Precision of the frozen denoiser and the text encoders, however they are stored; mixers are always
            trained in fp32.
        quantization: ``int8`` holds frozen linear layers of the denoiser's blocks in 8 bits (torchao). What trains is
            made of the weights as they are stored, and so are exports.
        revision: Git revision on the hub.
        variant: Weight variant, e.g. ``fp16``.
        trust_remote_code: Run code that comes with the teacher.
    """
