"""Calibration batches for tests of scores: the same two samples padded right, padded left, or one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.lvlm.test_tower import labels_of
from tests.tiny_lvlm import IMAGE, PAD, tiny_inputs

FAMILIES = ("llava", "llava_qwen2", "fast_vlm", "gemma3", "qwen2_5_vl")
Batch = dict[str, Any]


def batch_of(family: str, model: Any) -> Batch:
    """Two samples of different lengths with an image each, padded on the right, with answers."""
    inputs = tiny_inputs(family, model)
    return {"inputs": inputs, "labels": labels_of(inputs)}


def padded_left(batch: Batch) -> Batch:
    """The same samples with padding in front."""
    mask = batch["inputs"]["attention_mask"]

    def turned(rows: Any) -> Any:
        if not isinstance(rows, Tensor) or rows.shape != mask.shape:
            return rows
        return torch.stack([row.roll(int(len(row) - m.sum())) for row, m in zip(rows, mask, strict=True)])

    return {"inputs": {k: turned(v) for k, v in batch["inputs"].items()}, "labels": turned(batch["labels"])}


def one_by_one(batch: Batch) -> list[Batch]:
    """A batch for each sample, without padding."""
    mask = batch["inputs"]["attention_mask"]

    def taken(value: Tensor, sample: int) -> Tensor:
        if value.shape == mask.shape:
            return value[sample : sample + 1, : int(mask[sample].sum())]
        size = len(value) // len(mask)  # the patches of an image lie in a row in some families
        return value[sample * size : (sample + 1) * size]

    return [
        {"inputs": {k: taken(v, i) for k, v in batch["inputs"].items()}, "labels": taken(batch["labels"], i)}
        for i in range(len(mask))
    ]


def text_only(batch: Batch) -> Batch:
    """The samples without their images, padded on the right."""
    ids = batch["inputs"]["input_ids"]
    rows = [row[(row != IMAGE) & (row != PAD)] for row in ids]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    inputs = {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}
    return {"inputs": inputs, "labels": labels_of(inputs)}
