"""Batches of tokenised conversations: padded or packed rows of tokens, and the images of all samples.

Shape legend: B samples, R rows (B unless packed), T tokens of the longest row, A axes of positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from datamodules.record_dataset import join_corrupt
from sparsight.lvlm.chat.chat import TOKEN_INPUTS, ChatFormat
from sparsight.lvlm.chat.put import Put
from sparsight.lvlm.model.answer_losses import IGNORED
from sparsight.lvlm.model.packing import Positions, counted

Sample = dict[str, Any]


def collate_chats(
    samples: Sequence[Sample],
    *,
    pad_id: int,
    images_in_rows: bool,
    pack_to: int | None = None,
    positions: Positions = counted,
) -> dict[str, Any]:
    """Training batch: right-padded rows of one sample each, or of several where samples are packed.

    A packed row has no attention mask but ``position_ids``, (R, T) or (A, R, T), that begin anew with every sample, by
    which transformers keeps samples apart: call the model with ``use_cache=False``, it does not look at them where
    there is a cache.

    Args:
        samples: Each with ``inputs``, ``labels`` (T), ``index`` and what else a batch holds.
        pad_id: Token that fills rows.
        images_in_rows: Whether the model takes pixels as (samples, images, ...).
        pack_to: Most tokens of a packed row; ``None`` packs nothing.
        positions: How positions of a packed sample are counted.
    """
    rows = [[number] for number in range(len(samples))]
    if pack_to is not None:
        rows = first_fit([len(sample["labels"]) for sample in samples], pack_to)
    packed = [[samples[number] for number in row] for row in rows]
    inputs = _join_tokens([[s["inputs"] for s in row] for row in packed], pad_id=pad_id)
    if pack_to is not None:
        del inputs["attention_mask"]
        found = [torch.cat([positions(sample["inputs"]) for sample in row], dim=-1) for row in packed]
        width = inputs["input_ids"].shape[1]
        filled = [torch.cat([p, torch.arange(width - p.shape[-1]).expand(*p.shape[:-1], -1)], dim=-1) for p in found]
        inputs["position_ids"] = torch.stack(filled, dim=-2)
    inputs |= _join_images([[s["inputs"] for s in row] for row in packed], in_rows=images_in_rows)
    ordered = [sample for row in packed for sample in row]  # images are taken row by row
    labels_RT = _stack([torch.cat([sample["labels"] for sample in row]) for row in packed], value=IGNORED)
    return {"inputs": inputs, "labels": labels_RT, **_join_facts(ordered)}


def collate_questions(samples: Sequence[Sample], *, pad_id: int, images_in_rows: bool) -> dict[str, Any]:
    """Evaluation batch: left-padded prompts, with the candidates of each.

    Args:
        samples: Each with ``inputs``, ``candidates``, ``question``, ``index`` and what else a batch holds.
        pad_id: Token that fills rows.
        images_in_rows: Whether the model takes pixels as (samples, images, ...).
    """
    return {
        "inputs": join_prompts([s["inputs"] for s in samples], pad_id=pad_id, images_in_rows=images_in_rows),
        "prompt_length": torch.tensor([sample["inputs"]["input_ids"].shape[1] for sample in samples]),
        "candidates": [sample["candidates"] for sample in samples],
        "questions": [sample["question"] for sample in samples],
        **({"put": [sample["put"] for sample in samples]} if "put" in samples[0] else {}),
        **_join_facts(samples),
    }


def joined_puts(puts: Sequence[Put], chat: ChatFormat) -> dict[str, Any]:
    """What a batch holds of questions that are put anew: ``inputs``, left-padded, and ``candidates`` of each."""
    encoded = [put.encode(chat) for put in puts]
    prompts = [inputs for inputs, _ in encoded]
    return {
        "inputs": join_prompts(prompts, pad_id=chat.pad_id, images_in_rows=chat.images_in_rows),
        "candidates": [candidates for _, candidates in encoded],
    }


def join_prompts(prompts: Sequence[dict[str, Tensor]], *, pad_id: int, images_in_rows: bool) -> dict[str, Tensor]:
    """Model inputs of several prompts, left-padded.

    Args:
        prompts: Model inputs of each.
        pad_id: Token that fills rows.
        images_in_rows: Whether the model takes pixels as (samples, images, ...).
    """
    rows = [[prompt] for prompt in prompts]
    return _join_tokens(rows, pad_id=pad_id, left=True) | _join_images(rows, in_rows=images_in_rows)


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put things in as few rows as they come: each goes to the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(number)
        room[row] -= length
    return rows


def _join_facts(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "image_keys": [sample["image_keys"] for sample in samples],
        "corrupt": join_corrupt(samples),
        "cut": {sample["index"]: sample["cut"] for sample in samples if sample["cut"]},
    }


def _join_tokens(rows: Sequence[Sequence[dict[str, Tensor]]], *, pad_id: int, left: bool = False) -> dict[str, Tensor]:
    values = {name: pad_id if name == "input_ids" else 0 for name in TOKEN_INPUTS if name in rows[0][0]}
    return {
        name: _stack([torch.cat([part[name][0] for part in row]) for row in rows], value=value, left=left)
        for name, value in values.items()
    }


def _stack(rows: Sequence[Tensor], *, value: int, left: bool = False) -> Tensor:
    missing = [max(map(len, rows)) - len(row) for row in rows]
    sides = [(count, 0) if left else (0, count) for count in missing]
    return torch.stack([pad(row, side, value=value) for row, side in zip(rows, sides, strict=True)])


def _join_images(rows: Sequence[Sequence[dict[str, Tensor]]], *, in_rows: bool) -> dict[str, Tensor]:
    names = {name for row in rows for part in row for name in part if name not in TOKEN_INPUTS}
    if in_rows:
        return {name: _join_in_rows([[part[name] for part in row if name in part] for row in rows]) for name in names}
    parts = [part for row in rows for part in row]
    sized = "image_sizes" in names  # by them the model knows which patches are padding
    return {name: _join([part[name] for part in parts if name in part], padded=sized) for name in names}


def _join(parts: Sequence[Tensor], *, padded: bool) -> Tensor:
    """Join what lies as (images, ...); images of a different number of patches are padded, or laid end to end."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    if padded:
        return torch.cat(_padded(parts))
    return torch.cat([part.flatten(0, 1) for part in parts])[None]


def _join_in_rows(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Join what lies as (1, images, ...) into (rows, images, ...); images that are missing are zero."""
    like = next(part for row in rows for part in row)
    empty = like.new_zeros(1, 0, *like.shape[2:])
    return torch.cat(_padded([torch.cat(_padded(row, first=2), dim=1) if row else empty for row in rows]))


def _padded(parts: Iterable[Tensor], *, first: int = 1) -> list[Tensor]:
    """Bring tensors to one shape from dimension ``first`` on, by zeros behind."""
    parts = list(parts)
    sizes = [max(part.shape[d] for part in parts) for d in range(first, parts[0].ndim)]
    return [
        pad(part, [n for d in reversed(range(first, part.ndim)) for n in (0, sizes[d - first] - part.shape[d])])
        for part in parts
    ]
