"""Batches for image-text models, of two samples padded right, padded left, or one by one; what a model sees of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsight.lvlm.model.answer_losses import IGNORED, answer_losses
from sparsight.lvlm.model.tower import find_parts
from tests.tiny_families import PATCH
from tests.tiny_lvlm import tiny_inputs
from tests.tiny_tokens import IMAGE, PAD, VISION_END, VISION_START

FAMILIES = ("llava", "llava_qwen2", "fast_vlm", "gemma3", "qwen2_5_vl")
TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
Batch = dict[str, Any]


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    """The last three tokens of every sample carry loss."""
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        labels[row, length - 3 : length] = inputs["input_ids"][row, length - 3 : length]
    return labels


def batch_of(family: str, model: Any) -> Batch:
    """Two samples of different lengths with an image each, padded on the right, with answers."""
    inputs = tiny_inputs(family, model)
    return {"inputs": inputs, "labels": labels_of(inputs)}


def left_padded(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with the padding of their rows on the other side."""
    return inputs | {name: _turned(inputs[name], inputs["attention_mask"]) for name in TOKENS if name in inputs}


def wide_and_high() -> Batch:
    """Qwen's: an image of 2 x 4 tokens in one sample, one of 4 x 2 and another of 2 x 2 in the next, padded left."""
    torch.manual_seed(3)
    grids = torch.tensor([[1, 4, 8], [1, 8, 4], [1, 4, 4]])
    rows = []
    for counts, after in ([8], 9), ([8, 4], 5):
        row = [torch.randint(20, 200, (4,))]
        for count in counts:
            row += [torch.tensor([VISION_START, *[IMAGE] * count, VISION_END])]
        rows.append(torch.cat([*row, torch.randint(20, 200, (after,))]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "mm_token_type_ids": (ids == IMAGE).long()}
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * 2 * PATCH * PATCH)
    batch = {"inputs": inputs | {"pixel_values": pixels, "image_grid_thw": grids}, "labels": labels_of(inputs)}
    return padded_left(batch)


def _turned(rows: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row.roll(int(len(row) - m.sum())) for row, m in zip(rows, mask, strict=True)])


def padded_left(batch: Batch) -> Batch:
    """A batch with padding in front."""
    inputs = batch["inputs"]
    return {"inputs": left_padded(inputs), "labels": _turned(batch["labels"], inputs["attention_mask"])}


def alone(inputs: dict[str, Any], row: int) -> dict[str, Tensor]:
    """One sample's inputs, without padding."""
    mask = inputs["attention_mask"]

    def taken(name: str, value: Tensor) -> Tensor:
        if name in TOKENS:
            return value[row : row + 1, : int(mask[row].sum())]
        size = len(value) // len(mask)  # the patches of an image lie in a row in some families
        return value[row * size : (row + 1) * size]

    return {name: taken(name, value) for name, value in inputs.items()}


def one_by_one(batch: Batch) -> list[Batch]:
    """A batch for each sample, without padding."""
    lengths = batch["inputs"]["attention_mask"].sum(1).tolist()
    labels = [batch["labels"][row : row + 1, :length] for row, length in enumerate(lengths)]
    return [{"inputs": alone(batch["inputs"], row), "labels": own} for row, own in enumerate(labels)]


def text_only(batch: Batch) -> Batch:
    """The samples without their images, padded on the right."""
    ids = batch["inputs"]["input_ids"]
    rows = [row[(row != IMAGE) & (row != PAD)] for row in ids]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    inputs = {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}
    return {"inputs": inputs, "labels": labels_of(inputs)}


def alone_log_likelihoods(
    model: Any, inputs: dict[str, Any], candidates: list[list[list[int]]], family: str
) -> list[list[float]]:
    """Log-likelihood (nats) of each candidate, computed by itself without cache and padding."""
    found = []
    for row, question in enumerate(candidates):
        prompt = alone(inputs, row)
        values = []
        for ids in question:
            whole = dict(prompt)
            whole["input_ids"] = torch.cat([prompt["input_ids"], torch.tensor([ids])], 1)
            whole["attention_mask"] = torch.ones_like(whole["input_ids"])
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in whole:
                    added = 1 if family == "paligemma" else 0
                    whole[name] = torch.cat([whole[name], torch.full((1, len(ids)), added)], 1)
            labels = torch.full_like(whole["input_ids"], IGNORED)
            labels[0, -len(ids) :] = torch.tensor(ids)
            values.append(-float(answer_losses(model, whole, labels)[0].sum()))
        found.append(values)
    return found


def rows_seen(model: Any) -> list[int]:
    """Rows of every call of the vision tower's inside."""
    rows: list[int] = []
    (tower,) = find_parts(model).vision.values()
    inner = next(module for module in tower.modules() if isinstance(module, torch.nn.Conv2d))
    inner.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    return rows
