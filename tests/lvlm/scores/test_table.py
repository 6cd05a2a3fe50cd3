"""Ranks, correlations and files of a score table."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from sparsight.lvlm.scores import ScoreTable

A = [0.5, 0.1, 0.9, 0.9, 0.3]
B = [5.0, 2.0, 1.0, 8.0, 2.0]
TABLE = ScoreTable(
    {"a": [*A], "b": [*B], "window": [1.0, 3.0, 2.0, None, None], "flat": [1.0] * 5},
    facts={"model": "tiny", "samples": 4, "tokens": {"image": 8, "text": 20}},
    details={"b": {"removal_order": [2]}},
)


def kendall(x: list[float], y: list[float]) -> float:
    """Kendall's tau-b by counting pairs."""
    signs = [((p > q) - (p < q), (r > s) - (r < s)) for (p, r), (q, s) in combinations(zip(x, y, strict=True), 2)]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    return sum(a * b for a, b in signs) / (untied[0] * untied[1]) ** 0.5


def spearman(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of mean ranks."""
    ranks = [[sum(o < v for o in z) + sum(o == v for o in z) / 2 for v in z] for z in (x, y)]
    centred = [[r - sum(z) / len(z) for r in z] for z in ranks]
    products = [sum(p * q for p, q in zip(u, v, strict=True)) for u in centred for v in centred]
    return products[1] / (products[0] * products[3]) ** 0.5


def test_the_highest_number_has_rank_1_and_equal_ones_share_it() -> None:
    assert TABLE.ranks("a") == [3, 5, 1, 1, 4]
    assert TABLE.ranks("window") == [3, 1, 2, None, None]


def test_correlations_are_those_of_the_definitions() -> None:
    assert TABLE.correlations("kendall")["a"]["b"] == pytest.approx(kendall(A, B))
    assert TABLE.correlations("spearman")["a"]["b"] == pytest.approx(spearman(A, B))
    assert TABLE.correlations("spearman")["a"]["window"] == pytest.approx(spearman(A[:3], [1, 3, 2]))
    assert TABLE.correlations("kendall")["b"]["b"] == pytest.approx(1)
    assert TABLE.correlations("spearman")["a"]["flat"] is None


def test_json_keeps_everything(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "scores.json")
    assert ScoreTable.load(tmp_path / "scores.json") == TABLE
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["scores"]["b"] == {"values": B, "ranks": [2, 3, 5, 1, 3], "removal_order": [2]}
    assert content["rank_correlations"]["kendall"]["a"]["b"] == pytest.approx(kendall(A, B))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"scores": {}}')
    with pytest.raises(ValueError, match="holds no layer scores"):
        ScoreTable.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match="no scores at"):
        ScoreTable.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no score 'c'; there are: a, b, window, flat"):
        TABLE.values_of("c")


def test_the_folder_holds_json_csv_and_plot(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "scores")
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["scores.csv", "scores.json", "scores.png"]
    rows = list(csv.DictReader((tmp_path / "scores" / "scores.csv").open()))
    assert [float(row["a"]) for row in rows] == A
    assert [row["window rank"] for row in rows] == ["3", "1", "2", "", ""]
    with Image.open(tmp_path / "scores" / "scores.png") as picture:
        assert picture.width > 1000
    ScoreTable({"a": [*A]}).write(tmp_path / "one")


def test_text_shows_numbers_ranks_and_correlations_in_80_columns() -> None:
    lines = [line.split() for line in TABLE.text().splitlines()]
    assert lines[0] == ["layer", "a", "b", "window", "flat"]
    assert lines[2] == ["0", "0.5", "(3)", "5", "(2)", "1", "(3)", "1", "(1)"]
    assert lines[6] == ["4", "0.3", "(4)", "2", "(3)", "1", "(1)"]
    assert lines[-4] == ["a", "1.00", f"{spearman(A, B):.2f}", f"{spearman(A[:3], [1, 3, 2]):.2f}"]
    assert "correlation" not in ScoreTable({"a": [*A]}).text()
    wide = ScoreTable({f"a_score_with_a_long_name_{number}": [*A] for number in range(4)}).text()
    assert max(map(len, wide.splitlines())) <= 80 and wide.count("layer") == 2
