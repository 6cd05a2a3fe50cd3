"""Roofs, floors, and the journal of finished work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsight.analysis.journal import Journal
from sparsight.analysis.roofline import Roofs, Work, least_work, measure_roofs

ROOFS = Roofs(copy=100.0, matmul=1000.0, vector=10.0)
ABOUT = {"device": "this", "date": "monday"}


def test_the_floor_is_the_slower_of_moving_and_multiplying() -> None:
    assert Work(bytes=200, flops=1000).seconds(ROOFS) == 2.0
    assert Work(bytes=200, flops=5000).seconds(ROOFS) == 5.0


def test_least_work_of_a_linear_layer() -> None:
    sizes = {"inputs": 8 * 4, "weights": 4 * 6, "outputs": 8 * 6, "flops": 2 * 8 * 4 * 6, "itemsize": 2}
    assert least_work(**sizes) == Work(2 * (32 + 24 + 48), 384)
    # the backward pass reads gradient, input and weights, and writes gradients of input and weights; three products
    assert least_work(**sizes, backward=True) == Work(2 * (32 + 24 + 48) + 2 * (48 + 32 + 24 + 32 + 24), 3 * 384)


def test_roofs_of_this_machine() -> None:
    before = torch.get_float32_matmul_precision()
    roofs = measure_roofs(torch.device("cpu"), torch.float32)
    assert 1e8 < roofs.copy < 1e13
    assert 1e8 < roofs.matmul < 1e14
    assert 0.05 < roofs.vector / roofs.matmul < 20  # the same product, measured twice on a machine that may be busy
    assert torch.get_float32_matmul_precision() == before


def test_a_journal_keeps_results_and_drops_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    journal = Journal(path, ABOUT)
    journal.add("a", [1, 2])
    journal.add("b", {"x": None})
    with path.open("a") as file:
        file.write('{"key": "c", "res')
    again = Journal(path, ABOUT | {"date": "tuesday"})
    assert again.results == {"a": [1, 2], "b": {"x": None}}
    assert again.about == ABOUT
    again.add("c", 3)
    assert Journal(path, ABOUT).results == {"a": [1, 2], "b": {"x": None}, "c": 3}


def test_a_journal_of_another_device_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "rows.jsonl", ABOUT)
    with pytest.raises(ValueError, match="begun with device 'this', now it is 'that'"):
        Journal(tmp_path / "rows.jsonl", ABOUT | {"device": "that"})


def test_of_nested_facts_the_one_that_differs_is_named(tmp_path: Path) -> None:
    Journal(tmp_path / "rows.jsonl", {"model": {"name": "a" * 1000, "hash": "this"}})
    with pytest.raises(ValueError, match=r"begun with model\.hash 'this', now it is 'that'"):
        Journal(tmp_path / "rows.jsonl", {"model": {"name": "a" * 1000, "hash": "that"}})
