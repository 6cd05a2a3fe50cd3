"""How likely candidates are, each computed together with its question: slow, and right for any model.

Shape legend: B questions, P prompt tokens, L tokens of the longest candidate, T = P + L.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.lvlm.model.answer_losses import IGNORED, answer_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FIRST = [0]  # stands in where a question has no further candidate


def whole_log_likelihoods(
    model: PreTrainedModel, inputs: Mapping[str, Any], candidates: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Sums over the tokens of each candidate of their log-probabilities in nats, given all before them.

    Every pass takes one candidate of each question, so pixels need not be told apart by question.

    Args:
        model: An image-text model in eval mode.
        inputs: Keyword arguments of its forward pass for the questions alone, padded on the left.
        candidates: Token ids (at least one) that may follow each question.
    """
    found: list[list[float]] = [[] for _ in candidates]
    for column in zip_longest(*candidates):
        texts, labels_BT = _with_answers(inputs, [_FIRST if ids is None else ids for ids in column])
        losses_N, question_N = answer_losses(model, texts, labels_BT)
        sums_B = torch.zeros(len(column), dtype=losses_N.dtype, device=losses_N.device)
        sums_B.index_add_(0, question_N, losses_N)
        for row, ids in enumerate(column):
            if ids is not None:
                found[row].append(-float(sums_B[row]))
    return found


def _with_answers(inputs: Mapping[str, Any], answers: Sequence[Sequence[int]]) -> tuple[dict[str, Any], Tensor]:
    """Inputs with an answer behind each prompt, padded on the right, and their labels (B, T)."""
    ids_BP: Tensor = inputs["input_ids"]
    width = max(map(len, answers))
    rows = [torch.tensor([*ids, *[IGNORED] * (width - len(ids))], device=ids_BP.device) for ids in answers]
    labels_BL = torch.stack(rows)
    said_BL = labels_BL != IGNORED
    texts = {**inputs, "input_ids": torch.cat([ids_BP, labels_BL.where(said_BL, 0)], 1)}
    texts["attention_mask"] = torch.cat([inputs["attention_mask"], said_BL.to(inputs["attention_mask"])], 1)
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask") or not isinstance(value, Tensor) or value.ndim < 2:
            continue
        if name.endswith("token_type_ids"):  # an answer is text; PaliGemma's own word for that is 1
            is_suffix = name == "token_type_ids" and bool((value[:, -1] == 1).all())
            texts[name] = F.pad(value, (0, width), value=int(is_suffix))
        elif name == "cross_attention_mask":  # (B, P, images, tiles): an answer sees what its question's end sees
            texts[name] = torch.cat([value, value[:, -1:].expand(-1, width, *value.shape[2:])], 1)
    labels_BT = torch.cat([torch.full_like(ids_BP, IGNORED), labels_BL], 1)
    return texts, labels_BT
