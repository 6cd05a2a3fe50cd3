"""How likely a model finds each candidate answer to a question.

Image and question are computed once; what the model keeps of them (keys and values, states of convolutions and of
linear attention) serves all candidates, of which only the tokens themselves are computed. For a long image and short
answers that is nearly all of the work. The first time that a model is asked, some candidates are also computed with
their questions: a model that cannot share, or to which it makes a difference, computes whole texts from then on.

Shape legend: B questions, R candidates of all questions, P prompt tokens, L tokens of the longest candidate, V
vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sparsight.common.training.sharding import is_sharded
from sparsight.lvlm.answer.whole_texts import whole_log_likelihoods
from sparsight.lvlm.model.answer_losses import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_ROWS = 128  # candidates that go through the model together, each with a copy of its question's cache
Candidates = Sequence[Sequence[Sequence[int]]]  # questions, candidates, token ids
_SHARES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # whether a model may share, once that is known
_log = logging.getLogger(__name__)


@torch.no_grad()
def candidate_log_likelihoods(
    model: PreTrainedModel, inputs: Mapping[str, Any], candidates: Candidates
) -> list[list[float]]:
    """Sums over the tokens of each candidate of their log-probabilities in nats, given all before them.

    Args:
        model: An image-text model in eval mode.
        inputs: Keyword arguments of its forward pass for the questions alone, padded on the left.
        candidates: Token ids (at least one) that may follow each question.

    Returns:
        A number for every candidate of every question.

    Raises:
        ValueError: A question is padded on the right, or a candidate has no tokens.
    """
    mask_BP: Tensor = inputs["attention_mask"]
    if not bool(mask_BP[:, -1].all()):
        raise ValueError("the questions must be padded on the left, as their last tokens speak of the candidates")
    if not all(len(candidate) for question in candidates for candidate in question):
        raise ValueError("a candidate has no tokens")
    if all(len(candidate) == 1 for question in candidates for candidate in question):
        return _shared(model, inputs, candidates)[0]  # nothing goes on from the prompt
    if model not in _SHARES:
        found, _SHARES[model] = _shared_or_whole(model, inputs, candidates)
        return found
    return _shared(model, inputs, candidates)[0] if _SHARES[model] else _whole(model, inputs, candidates)


def _shared_or_whole(
    model: PreTrainedModel, inputs: Mapping[str, Any], candidates: Candidates
) -> tuple[list[list[float]], bool]:
    """Log-likelihoods, and whether the model may share; one candidate of each question is computed in both ways."""
    try:
        found, dtype = _shared(model, inputs, candidates)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # caches come in all kinds, and fail in as many ways
        _say_whole(model, f"its cache cannot be shared ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
        return _whole(model, inputs, candidates), False
    if is_sharded(model):  # processes must agree, which they do about errors, but not about roundings
        return found, True
    longest = [max(range(len(question)), key=lambda n: len(question[n])) for question in candidates]
    some = [[question[n]] for question, n in zip(candidates, longest, strict=True)]
    # rounding adds up over tokens and layers: 3e-3 nats a token in float32, 0.7 in bfloat16
    most = 8 * torch.finfo(dtype).eps ** 0.5
    off = max(
        abs(of_question[n] - whole) / len(ids)
        for of_question, n, [whole], [ids] in zip(found, longest, _whole(model, inputs, some), some, strict=True)
    )
    if not off > most:
        return found, True
    _say_whole(model, f"behind a shared cache a token's log-likelihood differs by {off:.2g} nats")
    return _whole(model, inputs, candidates), False


def _say_whole(model: PreTrainedModel, reason: str) -> None:
    _log.warning("%s: %s; candidates are computed as whole texts, which is slower", type(model).__name__, reason)


def _whole(model: PreTrainedModel, inputs: Mapping[str, Any], candidates: Candidates) -> list[list[float]]:
    _forget_positions(model)
    return whole_log_likelihoods(model, inputs, candidates)


def _shared(
    model: PreTrainedModel, inputs: Mapping[str, Any], candidates: Candidates
) -> tuple[list[list[float]], torch.dtype]:
    """Log-likelihoods behind prompts that are computed once, and the precision of their logits."""
    mask_BP: Tensor = inputs["attention_mask"]
    last_BP = torch.zeros_like(mask_BP, dtype=torch.bool)
    last_BP[:, -1] = True
    _forget_positions(model)
    prompt = forward(model, last_BP, use_cache=True, **inputs)
    rows = [torch.tensor(ids, device=mask_BP.device) for question in candidates for ids in question]
    counts = [len(question) for question in candidates]
    question_R = torch.repeat_interleave(
        torch.arange(len(counts), device=mask_BP.device), torch.tensor(counts, device=mask_BP.device)
    )
    tokens_RL = pad_sequence(rows, batch_first=True)
    said_RL = pad_sequence([torch.ones_like(ids) for ids in rows], batch_first=True)
    log_R = _of_first(prompt.logits[0], tokens_RL, question_R)
    if tokens_RL.shape[1] > 1:
        parts = torch.arange(len(rows), device=mask_BP.device).split(MOST_ROWS)
        for number, rows_R in enumerate(parts, start=1):
            cache = prompt.past_key_values if number == len(parts) else copy.deepcopy(prompt.past_key_values)
            # what beam search does with a cache; every kind of layer knows it, whatever it keeps
            cache.reorder_cache(question_R[rows_R])
            of_rows = (tokens_RL[rows_R], said_RL[rows_R], mask_BP[question_R[rows_R]], question_R[rows_R])
            log_R[rows_R] += _of_others(model, cache, *of_rows)
    return [part.tolist() for part in log_R.split(counts)], prompt.logits.dtype


def _of_first(logits_BV: Tensor, tokens_RL: Tensor, question_R: Tensor) -> Tensor:
    return F.log_softmax(logits_BV.float(), -1)[question_R, tokens_RL[:, 0]]


def _of_others(
    model: PreTrainedModel, cache: Any, tokens_RL: Tensor, said_RL: Tensor, mask_RP: Tensor, question_R: Tensor
) -> Tensor:
    wanted_RL = said_RL[:, 1:].bool()  # the logits after a token speak of the next one
    mask = torch.cat([mask_RP, said_RL[:, :-1]], 1)
    output = forward(
        model,
        wanted_RL,
        input_ids=tokens_RL[:, :-1],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **_positions(model, mask, wanted_RL.shape[1], question_R),
    )
    losses = F.cross_entropy(output.logits[0].float(), tokens_RL[:, 1:][wanted_RL], reduction="none")
    log_RL = torch.zeros_like(wanted_RL, dtype=torch.float32)
    log_RL[wanted_RL] = -losses
    return log_RL.sum(1)


@runtime_checkable
class Ahead(Protocol):
    """A model (Qwen-VL) that remembers how far the positions of a batch are ahead of its tokens."""

    rope_deltas: Tensor | None


def _inner(model: nn.Module) -> nn.Module:
    """The part of a model that makes hidden states."""
    return dict(model.named_children()).get("model", model)


def _forget_positions(model: Any) -> None:
    """Drop what Qwen-VL remembers of an earlier batch; it makes no new numbers for questions without images."""
    owner = _inner(model)
    if isinstance(owner, Ahead):
        owner.rope_deltas = None


def _positions(model: Any, mask: Tensor, count: int, question_R: Tensor) -> dict[str, Tensor]:
    """Qwen-VL's three positions of the last ``count`` tokens; other models know theirs by the length of the cache.

    It keeps for every question how far positions are ahead of tokens, but cannot continue by several tokens by itself.
    """
    owner = _inner(model)
    ahead = owner.rope_deltas if isinstance(owner, Ahead) else None
    if ahead is None:
        return {}
    positions_RL = (mask.cumsum(1) - 1)[:, -count:] + ahead[question_R].to(mask)
    return {"position_ids": positions_RL.expand(3, -1, -1)}
