"""Distilling a base that is known by its files, whatever it is held in while students of it train."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lightning_modules.beside_teacher import BesideTeacher
from sparsight.common.errors import ConfigurationError
from sparsight.common.hashes import is_state, kind_of
from sparsight.common.quantised.weights import Quantisation, check_quantisation, has_codes, keep_from_ddp
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.identity import stored_hash
from sparsight.diffusion.surgery.rest.quantised import quantise, stored_denoiser


class StoredBase(BesideTeacher):
    """Base of distillations.

    Attributes:
        teacher: Pipeline folder, shipped model or hub id.
        teacher_hash: Of the weights of its denoiser as they are stored.
        quantised: What frozen layers are held in, if not in their precision.
    """

    denoiser: Any
    teacher: str
    teacher_hash: str
    quantised: Quantisation | None

    def load_base(
        self, teacher: str, *, dtype: torch.dtype, quantised: Quantisation | None, source: Mapping[str, Any]
    ) -> None:
        """Load the base, in this precision at once.

        Args:
            teacher: Pipeline folder, shipped model or hub id.
            dtype: Of denoiser and text encoders.
            quantised: What ``quantise_base`` will hold frozen layers in.
            source: Revision, variant and trust.

        Raises:
            ConfigurationError: What quantises is not installed.
        """
        self.teacher, self.quantised, self._source = teacher, quantised, dict(source)
        if quantised is not None:
            check_quantisation(self._option)
        self.diffusion = DiffusionModel.from_pretrained(teacher, dtype=dtype, **self._source)
        self.denoiser = self.diffusion.denoiser
        self.teacher_hash = stored_hash(self.denoiser, self.diffusion.stored, self._load_stored)

    @property
    def _option(self) -> str:
        return f"model.loading.quantization: {self.quantised}"

    def quantise_base(self) -> None:
        """Hold frozen layers in codes if that is wished, once all that is to train requires gradients.

        Raises:
            ConfigurationError: There is no such layer.
        """
        if self.quantised is None:
            return
        quantise(self.denoiser, self._option)
        keep_from_ddp(self)

    def whole_base(self) -> AbstractContextManager[None]:
        """The denoiser with stored weights in the places of codes: what an export is made of."""
        if not has_codes(self.denoiser):
            return nullcontext()
        stored = self.diffusion.stored
        return stored_denoiser(self.denoiser, self._load_stored() if stored is None else stored)

    def configure_callbacks(self) -> list[Callback]:
        """None; refuses codes that would be split over processes.

        Raises:
            ConfigurationError: They would.
        """
        if self.quantised is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigurationError(
                f"{self._option} and ModelParallelStrategy (FSDP2) do not go together: weights in codes cannot be "
                "split over processes; use DDP, where each process holds all codes, or set it to null"
            )
        return super().configure_callbacks()

    def _was_teacher(self, recorded: str) -> bool:
        """Whether a hash of another kind, of an earlier version, is that of the teacher as it is stored."""
        if kind_of(recorded) == kind_of(self.teacher_hash):
            return False
        return is_state(recorded, self._load_stored())

    def _load_stored(self) -> Mapping[str, Tensor]:
        """Weights of the teacher's denoiser, in fp32."""
        return DiffusionModel.from_pretrained(self.teacher, **self._source).denoiser.state_dict()
