"""Tables of what validation and tests found."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from rich.console import Console

from sparsight.command.output.results import print_results

SITES = [f"down_blocks.{block}.attentions.{n}.transformer_blocks.0.attn1" for block in range(3) for n in range(2)]
TASKS = ("vsr", "text_young_animals", "a" * 40)


def printed(*results: dict[str, Any], width: int = 80) -> list[list[str]]:
    """Cells of the rows that were printed."""
    stream = io.StringIO()
    print_results(results, "validate", Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [
        [cell.strip() for cell in re.split("[\u2502\u2503|]", line)[1:-1]]
        for line in lines
        if line[0] in "\u2502\u2503|"
    ]


def test_tasks_and_sites_become_rows_and_measures_columns() -> None:
    metrics = {"val/loss": torch.tensor(6.3912), "val/steps": 123456.0}
    metrics |= {f"val/accuracy/{way}/{task}": 1 / 3 for way in ("likelihood", "generation") for task in TASKS}
    metrics |= {f"val/relative_l2/{site}": 0.00001234 for site in SITES} | {"val/kept/text": 1.0}
    rows = printed(metrics)
    assert rows[:4] == [["metric", "value"], ["val/kept/text", "1"], ["val/loss", "6.39"], ["val/steps", "123 k"]]
    assert rows[4] == ["val/accuracy", "generation", "likelihood"]
    assert rows[5:8] == [[task, "0.333", "0.333"] for task in sorted(TASKS)]
    assert rows[8:] == [["val/relative_l2", "value"], *([site, "1.23e-05"] for site in SITES)]


def test_data_loaders_and_splits_are_told_apart() -> None:
    rows = printed({"val/loss/dataloader_idx_0": 1.0}, {"val/loss/dataloader_idx_1": 2.0}, {"val/more": 3.0})
    assert rows[1:] == [["val/loss", "1"], ["val/loss, loader 1", "2"], ["val/more", "3"]]
    rows = printed({f"{split}/relative_l2/{site}": 1.0 for split in ("val", "test") for site in "ab"})
    assert [row[0] for row in rows] == ["test/relative_l2", "a", "b", "val/relative_l2", "a", "b"]


@pytest.mark.parametrize("ways", [4, 5, 9])
def test_many_measures_take_several_tables_without_a_name_twice(ways: int) -> None:
    rows = printed({f"val/score/way_number_{way}/{task}": 0.5 for way in range(ways) for task in TASKS})
    heads = [cell for row in rows if row[0].startswith("val/") for cell in row[1:]]
    assert heads == [f"way_number_{way}" for way in range(ways)]
    names = [row[0] for row in rows if row[0].startswith("val/")]
    assert len(set(names)) == len(names) == -(-ways // 2)


def test_many_tasks_whose_measures_have_a_name_are_rows_too() -> None:
    tasks = [f"task_number_{number}" for number in range(9)]
    rows = printed({f"test/likelihood/task/{t}/{way}": 0.5 for t in tasks for way in ("accuracy", "by_token")})
    assert rows == [["test/likelihood/task", "accuracy", "by_token"], *([task, "0.5", "0.5"] for task in tasks)]


def test_nothing_measured_prints_nothing() -> None:
    assert printed({}) == []
