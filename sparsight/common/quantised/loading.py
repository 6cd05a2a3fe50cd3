"""How a pretrained model is read that stays frozen, but for what a method trains of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sparsight.common.disk.loading import Loading
from sparsight.common.errors import need_choice
from sparsight.common.quantised.weights import Quantisation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class FrozenLoading(Loading):
    """Which files of a model are meant, and what its frozen weights are held in.

    Args:
        dtype: Precision of the weights, however they are stored.
        quantization: ``int8`` holds frozen linear layers in 8 bits (torchao); exports are made of the stored weights.
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ConfigurationError: There is no such precision or quantization.
    """

    dtype: Dtype = "float32"
    quantization: Quantisation | None = None

    def __post_init__(self) -> None:
        """Refuse names that there are not."""
        need_choice("loading.dtype", self.dtype, Dtype)
        if self.quantization is not None:
            need_choice("loading.quantization", self.quantization, Quantisation)
