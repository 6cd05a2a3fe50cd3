"""The text-to-image study's rows: which captions are found among which, judged once, and the report of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import emoji_study
from benchmarks.emoji import SIZE, Emoji
from benchmarks.emoji_study import COMMITTED, captions, judge, take_up, write_report
from benchmarks.study_runs import PROTOCOL_FILE, add_row, read_rows, sample_file


class ByBrightness:
    """Fits an image to the caption whose number is its brightness in 1/1000, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def fit(self, images: Tensor, names: Sequence[str]) -> Tensor:
        self.asked.append(list(names))
        bright_N = 1000 * images.mean((1, 2, 3))
        return -(bright_N[:, None] - torch.tensor([float(name) for name in names])).abs()


class NoDistance:
    def of(self, batches: Any) -> dict[str, float]:
        return {"value": 1.0}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A teacher that draws held-out captions 17 brighter than asked for, and the others as asked."""

    def emoji(names: range) -> Emoji:
        images = torch.tensor([number / 1000 for number in names])[:, None, None, None].expand(-1, 3, SIZE, SIZE)
        return Emoji(images, [str(number) for number in names])

    monkeypatch.setattr(emoji_study, "known", lambda: (emoji(range(0, 400, 4)), emoji(range(500, 980, 15))))
    captions.cache_clear()
    asked = torch.tensor([float(name) for name in captions()])
    bright = (asked + 17 * (asked >= 500)) / 1000 * 255
    images = bright.round().to(torch.uint8)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    path = sample_file(tmp_path, "teacher", seed=0, size=SIZE)
    path.parent.mkdir()
    save_file({"images": images.contiguous()}, path)
    yield tmp_path
    captions.cache_clear()


def test_captions_are_found_among_others_of_their_kind_and_judged_once(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_brightness, made = ByBrightness(), []

    def judges() -> tuple[dict[str, Any], ByBrightness]:
        made.append(1)
        return {"frechet": NoDistance(), "kernel": NoDistance()}, by_brightness

    for _ in range(2):
        judge(["teacher", "not_drawn"], drawn, [0], judges=judges)
    assert len(made) == 1
    held_out, trained = ([str(n) for n in names] for names in (range(500, 980, 15), range(0, 400, 20)))
    assert by_brightness.asked == [held_out, held_out, trained]  # the first of real images
    real, teacher = read_rows(drawn)
    assert real["arm"] == "real" and real["found_held_out"] == 1
    assert teacher["found_trained"] == 1 and teacher["found_held_out"] < 0.6 and teacher["rmse_to_teacher"] == 0
    write_report(drawn, drawn / "report", ["real", "teacher", "focal_cells"], "protocol")
    assert (drawn / "report" / "samples.png").is_file()
    table = (drawn / "report" / "tables.md").read_text()
    assert table.count("\n| ") == 4 and " 1000 |" in table  # of the kernel distance


def test_a_folder_begins_with_the_committed_rows_of_the_same_way_of_drawing(tmp_path: Path) -> None:
    known = json.loads((COMMITTED / PROTOCOL_FILE).read_text())
    for name, samples in (("same", known["samples"]), ("fewer", 10)):
        (tmp_path / name).mkdir()
        take_up(tmp_path / name, argparse.Namespace(**known | {"samples": samples}))
    rows = read_rows(tmp_path / "same")
    assert rows == read_rows(COMMITTED) and {"real", "teacher"} < {row["arm"] for row in rows}
    assert read_rows(tmp_path / "fewer") == []
    add_row(tmp_path / "same", arm="another")
    take_up(tmp_path / "same", argparse.Namespace(**known))
    assert len(read_rows(tmp_path / "same")) == len(rows) + 1, "what a folder has of its own stays"
