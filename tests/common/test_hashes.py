"""Hashes of weights: their kind is told, old ones are known, and they are as fast as memory."""

from __future__ import annotations

import hashlib

import pytest
import torch

from sparsight.common.hashes import is_state, kind_of, short_hash, state_hash

STATE = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(True)}


def sha256(state: dict[str, torch.Tensor]) -> str:
    """As earlier versions wrote it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_the_kind_is_told_and_hashes_of_earlier_versions_are_known() -> None:
    new, old = state_hash(STATE), sha256(STATE)
    assert kind_of(new) == "xxh3-128" and kind_of(old) == ""
    assert state_hash(STATE, like=old) == old and state_hash(dict(reversed(STATE.items()))) == new
    assert is_state(old, STATE) and is_state(new, STATE) and not is_state(None, STATE)
    assert short_hash(old) == old[:12] and short_hash(new) == new[: len("xxh3-128:") + 12]
    with pytest.raises(ValueError, match="kind 'blake9', which this version does not know"):
        is_state("blake9:00", STATE)


@pytest.mark.parametrize(
    "other",
    [
        {"a": STATE["a"], "b": STATE["b"]},
        STATE | {"a": torch.ones(2, dtype=torch.float16)},
        STATE | {"b": STATE["b"].T},
        STATE | {"b": STATE["b"] + torch.eye(3, 2) * 1e-6},
        {"a": STATE["a"], "d": STATE["b"], "c": STATE["c"]},
    ],
    ids=["fewer", "dtype", "shape", "value", "name"],
)
def test_other_weights_have_other_hashes(other: dict[str, torch.Tensor]) -> None:
    for recorded in (state_hash(STATE), sha256(STATE)):
        assert not is_state(recorded, other)
