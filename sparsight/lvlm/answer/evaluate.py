"""Answering evaluation items: by the likelihood of candidates, and by writing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsight.common.finite import NonFiniteError
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.answer.task_scores import Item, same_answer
from sparsight.lvlm.answer.write import write_answers
from sparsight.lvlm.chat.thoughts import Thought

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    Raises:
        NonFiniteError: A likelihood is not finite, of which the first would pass for the largest.
    """
    logs = candidate_log_likelihoods(model, batch["inputs"], batch["candidates"])
    for index, of_row in zip(batch["index"].tolist(), logs, strict=True):
        if not all(map(math.isfinite, of_row)):
            raise NonFiniteError(
                f"evaluation item {index}: the log-likelihoods of its candidates are {of_row}; are the model's weights "
                "sound? In float16 they may overflow: set model.dtype to bfloat16 or float32"
            )
    written: list[Thought | None] = [None] * len(logs)
    if new_tokens:
        texts = write_answers(model, tokenizer, batch["inputs"], new_tokens=new_tokens)
        written = [text.parts() for text in texts]
    items = []
    for row, (of_row, said) in enumerate(zip(logs, written, strict=True)):
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
                generated=None if said is None else said.answer,
                generated_right=None if said is None else same_answer(said.answer, batch["texts"][row][answer]),
                unfinished=said is not None and said.unfinished,
            )
        )
    return items
