"""Answering evaluation items: by the likelihood of candidates, and by writing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsight.lvlm.likelihood import candidate_log_likelihoods
from sparsight.lvlm.task_scores import Item, same_answer
from sparsight.sharding import is_sharded


def answer_items(
    model: PreTrainedModel, tokenizer: Any, batch: Mapping[str, Any], *, new_tokens: int = 0
) -> list[Item]:
    """Let a model choose and write answers.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        batch: Evaluation batch of an InstructionDataModule: ``inputs``, ``candidates`` (token ids), ``texts``,
            ``answer``, ``task``, ``index`` and ``image_keys``.
        new_tokens: Most tokens that it may write; 0 for no writing at all.
    """
    logs = candidate_log_likelihoods(model, batch["inputs"], batch["candidates"])
    written = _written(model, tokenizer, batch["inputs"], new_tokens) if new_tokens else [None] * len(logs)
    items = []
    for row, (of_row, text) in enumerate(zip(logs, written, strict=True)):
        by_token = [log / len(ids) for log, ids in zip(of_row, batch["candidates"][row], strict=True)]
        answer = int(batch["answer"][row])
        items.append(
            Item(
                index=int(batch["index"][row]),
                task=batch["task"][row],
                visual=bool(batch["image_keys"][row]),
                answer=answer,
                candidates=len(of_row),
                log_likelihood=of_row[answer],
                tokens=len(batch["candidates"][row][answer]),
                likeliest=of_row.index(max(of_row)),
                likeliest_by_token=by_token.index(max(by_token)),
                generated=text,
                generated_right=None if text is None else same_answer(text, batch["texts"][row][answer]),
            )
        )
    return items


@torch.no_grad()
def _written(model: Any, tokenizer: Any, inputs: Mapping[str, Any], new_tokens: int) -> list[str]:
    options = {"do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": tokenizer.pad_token_id}
    # processes that share a split model write on until all are done
    tokens = model.generate(**inputs, **options, synced_gpus=is_sharded(model))
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
