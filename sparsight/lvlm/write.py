"""What a model writes after prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sparsight.sharding import is_sharded


@torch.no_grad()
def write_answers(model: Any, tokenizer: Any, inputs: Mapping[str, Any], *, new_tokens: int) -> list[str]:
    """The likeliest continuation, token by token, of every prompt of a batch.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        inputs: Keyword arguments of its forward pass, padded on the left.
        new_tokens: Most tokens to write.
    """
    options = {"do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": tokenizer.pad_token_id}
    # processes that share a split model write on until all are done
    tokens = model.generate(**inputs, **options, synced_gpus=is_sharded(model))
    return tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
