"""Numbers that are not finite are found in tensors of every kind, and only there."""

from __future__ import annotations

import pytest
import torch

from sparsight.common.finite import NonFiniteError, all_finite, check_checkpoint, not_finite

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", KINDS)
def test_every_kind_of_float_is_looked_at(dtype: torch.dtype) -> None:
    largest = torch.full((3, 2), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    tensors = {"sound": largest, "none": largest[:0], "codes": torch.tensor([7], dtype=torch.uint8)}
    assert not_finite(tensors) == [] and bool(all_finite(tensors.values()))
    values = [torch.nan] if dtype == torch.float8_e4m3fn else [torch.nan, torch.inf, -torch.inf]  # it has no infinity
    for value in values:
        spoilt = torch.tensor([0.0, value, 1.0]).to(dtype)
        assert not_finite(tensors | {"spoilt": spoilt}) == ["spoilt"]
        assert not bool(all_finite([*tensors.values(), spoilt]))
    meta = torch.empty(2, device="meta", dtype=dtype)
    assert not_finite({"meta": meta}) == []


def test_a_checkpoint_is_refused_by_the_name_of_what_is_wrong() -> None:
    checkpoint = {
        "state_dict": {"weight": torch.ones(2)},
        "callbacks": {
            "ModelCheckpoint": {"kth_value": torch.tensor(torch.inf)},
            "EMA": {"average": {"w": torch.ones(2)}},
        },
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}}],
        "sparsight": {"recent_errors": {"site": torch.tensor(0.5)}, "layers": [1, 2]},
    }
    check_checkpoint(checkpoint)
    checkpoint["callbacks"]["EMA"]["average"]["w"][0] = torch.nan  # type: ignore[index]
    with pytest.raises(NonFiniteError, match=r"^not saved: the checkpoint: callbacks\.EMA\.average\.w is not finite$"):
        check_checkpoint(checkpoint)
    checkpoint["callbacks"]["EMA"]["average"]["w"][0] = 0  # type: ignore[index]
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"][1] = torch.inf  # type: ignore[index]
    with pytest.raises(NonFiniteError, match=r"optimizer_states\.0\.state\.0\.exp_avg"):
        check_checkpoint(checkpoint)
