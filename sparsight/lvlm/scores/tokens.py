"""Calibration batches as scores see them: inputs on the device, and the kind of every token.

Shape legend: B batch, T tokens, L layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from sparsight.common.errors import ConfigurationError
from sparsight.common.hashes import SHA256, state_hash
from sparsight.lvlm.model.tower import Parts


@dataclass(frozen=True)
class TokenKinds:
    """Where image and text tokens are; padding is neither.

    Args:
        image_BT: Placeholders that image features replace.
        text_BT: All other tokens: words, template, markers.
    """

    image_BT: Tensor
    text_BT: Tensor

    @classmethod
    def of(cls, inputs: Mapping[str, Any], image_token_id: int) -> TokenKinds:
        """Kinds by the id of the image token and the attention mask, on either side of which padding may be.

        Raises:
            ConfigurationError: There are no token ids, the mask is not (B, T), or rows hold several samples.
        """
        if "input_ids" not in inputs:
            raise ConfigurationError(f"a calibration batch needs input_ids among its inputs; it has {sorted(inputs)}")
        ids_BT: Tensor = inputs["input_ids"]
        mask: Tensor | None = inputs.get("attention_mask")
        if mask is None and "position_ids" in inputs:
            raise ConfigurationError(
                "layers are scored on one sample a row: set batching.packing of the datamodule to false"
            )
        if mask is not None and mask.shape != ids_BT.shape:
            raise ConfigurationError(
                f"attention_mask is {tuple(mask.shape)}, expected {tuple(ids_BT.shape)} like input_ids"
            )
        present_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask is None else mask.bool()
        is_image_BT = ids_BT == image_token_id
        return cls(is_image_BT & present_BT, ~is_image_BT & present_BT)

    @property
    def present_BT(self) -> Tensor:
        """All tokens that are not padding."""
        return self.image_BT | self.text_BT

    @property
    def last_BT(self) -> Tensor:
        """The last token of every sample."""
        places_T = torch.arange(self.image_BT.shape[1], device=self.image_BT.device)
        last_B = torch.where(self.present_BT, places_T, -1).amax(dim=1)
        return places_T == last_B[:, None]

    def of_kind(self, kind: str) -> Tensor:
        """Tokens of kind ``all``, ``image``, ``text`` or ``last``, (B, T)."""
        return {"all": self.present_BT, "image": self.image_BT, "text": self.text_BT, "last": self.last_BT}[kind]


@dataclass(frozen=True)
class CalibrationBatch:
    """One batch on the model's device.

    Args:
        inputs: Keyword arguments of the model's forward pass.
        tokens: Kinds of tokens.
        labels_BT: Token ids of answers, -100 elsewhere; ``None`` if the batch has no answers.
    """

    inputs: dict[str, Any]
    tokens: TokenKinds
    labels_BT: Tensor | None


class CalibrationSet:
    """Batches of the instruction datamodule, moved to the device one at a time.

    Args:
        batches: Dictionaries with ``inputs`` and perhaps ``labels``; iterated anew by every score that does not share
            the common pass.
        parts: Of the model that they are for.
    """

    def __init__(self, batches: Iterable[Mapping[str, Any]], parts: Parts) -> None:
        self.batches = batches
        self.image_token_id = parts.image_token_id
        self.device = next(parts.embeddings.parameters()).device

    def __iter__(self) -> Iterator[CalibrationBatch]:
        for batch in self.batches:
            inputs = move_data_to_device(dict(batch["inputs"]), self.device)
            labels = batch.get("labels")
            labels_BT = None if labels is None else labels.to(self.device)
            yield CalibrationBatch(inputs, TokenKinds.of(inputs, self.image_token_id), labels_BT)


class CalibrationFacts:
    """Counts what passes by, and hashes it."""

    def __init__(self) -> None:
        self.samples = self.image = self.text = 0
        self._digest = hashlib.sha256()

    def note(self, batch: CalibrationBatch) -> None:
        """Count one batch."""
        self.samples += len(batch.tokens.image_BT)
        self.image += int(batch.tokens.image_BT.sum())
        self.text += int(batch.tokens.text_BT.sum())
        tensors = {name: value for name, value in batch.inputs.items() if isinstance(value, Tensor)}
        self._digest.update(state_hash(tensors, like=SHA256).encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain data: number of samples, tokens of each kind, hash of all inputs in their batches."""
        tokens = {"image": self.image, "text": self.text}
        return {"samples": self.samples, "tokens": tokens, "data_sha256": self._digest.hexdigest()}
