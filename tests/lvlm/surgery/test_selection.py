"""Selections against the published lists and the table of rules, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lightning_modules import SparseLayerTuning
from sparsight.lvlm.scores import ScoreTable
from sparsight.lvlm.scores.table import FORMAT
from sparsight.lvlm.surgery.selection import (
    All,
    Consecutive,
    Explicit,
    Hybrid,
    LayerSelection,
    Preset,
    Random,
    TopK,
    Uniform,
)
from sparsight.lvlm.train.stages import TuningStage


@pytest.mark.parametrize(
    ("rule", "depth", "count", "expected"),
    [
        ("floor", 32, 8, [0, 4, 8, 12, 16, 20, 24, 28]),
        ("floor", 40, 9, [0, 4, 8, 13, 17, 22, 26, 31, 35]),
        ("floor", 40, 10, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]),
        ("stride_end", 32, 8, [3, 7, 11, 15, 19, 23, 27, 31]),
        ("stride_end", 40, 10, [3, 7, 11, 15, 19, 23, 27, 31, 35, 39]),
        ("midpoint", 32, 8, [2, 6, 10, 14, 18, 22, 26, 30]),
        ("linspace", 32, 8, [0, 4, 9, 13, 18, 22, 27, 31]),
        ("linspace", 40, 9, [0, 5, 10, 15, 20, 24, 29, 34, 39]),
        ("linspace", 40, 10, [0, 4, 9, 13, 17, 22, 26, 30, 35, 39]),
    ],
)
def test_uniform_rules_give_the_published_table(rule: Any, depth: int, count: int, expected: list[int]) -> None:
    assert Uniform(count, rule=rule).select(depth) == expected


@pytest.mark.parametrize("rule", ["floor", "linspace", "stride_end", "midpoint"])
def test_uniform_rules_hold_for_all_depths_and_counts(rule: Any) -> None:
    for depth in range(1, 41):
        assert Uniform(depth, rule=rule).select(depth) == list(range(depth))
        for count in range(1, depth + 1):
            assert len(Uniform(count, rule=rule).select(depth)) == count


def test_presets_are_the_published_lists() -> None:
    assert Preset("visual_region_code").select(32) == [1, 5, 9, 13, 19, 23, 27, 31]
    assert Preset("visual_region_paper").select(32) == [0, 4, 8, 12, 18, 22, 26, 30]


@pytest.mark.parametrize(
    ("place", "depth", "count", "expected"),
    [
        ("bottom", 32, 8, range(0, 8)),
        ("lower_middle", 32, 8, range(8, 16)),
        ("upper_middle", 32, 8, range(16, 24)),
        ("top", 32, 8, range(24, 32)),
        ("lower_middle", 30, 8, range(7, 15)),
        ("upper_middle", 31, 16, range(15, 31)),
    ],
)
def test_consecutive_blocks(place: Any, depth: int, count: int, expected: range) -> None:
    assert Consecutive(place, count).select(depth) == list(expected)


@pytest.mark.parametrize(("ratio", "depth", "count"), [(0.25, 30, 8), (0.225, 40, 9), (0.29, 50, 15), (0.01, 6, 1)])
def test_a_ratio_is_rounded_to_the_nearest_number_with_halves_up(ratio: float, depth: int, count: int) -> None:
    assert len(Uniform(ratio=ratio).select(depth)) == count


def test_other_selections() -> None:
    assert Hybrid(2, 3).select(8) == [0, 1, 5, 6, 7]
    assert Explicit([5, 0, 3]).select(6) == [0, 3, 5]
    assert All().select(3) == [0, 1, 2]
    assert Uniform(8, offset=3).select(32) == Uniform(8, rule="stride_end").select(32)


def test_random_layers_depend_on_the_seed_alone() -> None:
    drawn = [Random(8, seed=seed).select(32) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(layers)) == 8 for layers in drawn)
    assert {layer for seed in range(40) for layer in Random(8, seed=seed).select(32)} == set(range(32))


@pytest.fixture
def scores(tmp_path: Path) -> str:
    path = tmp_path / "scores.json"
    ScoreTable({"a": [0.3, 0.1, 0.5, 0.3], "window": [0.1, 0.2, 0.3, None]}).save(path)
    return str(path)


def test_top_k_takes_the_highest_or_the_lowest(scores: str) -> None:
    assert TopK(scores, "a", count=2).select(4) == [0, 2]  # of equal ones the lower layer
    assert TopK(scores, "a", ratio=0.75).select(4) == [0, 2, 3]
    assert TopK(scores, "a", count=1, highest=False).select(4) == [1]
    assert TopK(scores, "a", count=2, highest=False).select(4) == [0, 1]


ODD = [
    *(([5.0, odd, 1.0, 9.0], "layer 1 has .*, no finite number") for odd in (math.nan, math.inf, -math.inf)),
    *(
        ([5.0, 1.0, odd, 9.0], "layer 2 has .*, no finite number")
        for odd in ("9", True, [1.0], {"value": 1.0}, 10**400)
    ),
    *((values, "is no list of numbers") for values in ([], "1234", {"0": 1.0}, 5, None)),
    ([5.0, None, 1.0, 9.0], r"has no number for layers \[1\]"),
    ([5.0, 1.0, 9.0], "scores 3 layers, but the decoder has 4"),
    ([5.0, 1.0, 9.0, 2.0, 3.0], "scores 5 layers, but the decoder has 4"),
]


@pytest.mark.parametrize(("values", "message"), ODD, ids=lambda value: str(value)[:20])
def test_scores_that_are_no_numbers_are_refused(values: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"format": FORMAT, "scores": {"a": {"values": values}}}))
    with pytest.raises(ValueError, match=message) as caught:
        TopK(str(path), "a", count=2).select(4)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"layer,a\n0,1.0\n1,2.0\n", "is no JSON that can be used"),
        (b"", "is no JSON that can be used"),
        (b"\xff\xfe\x00", "is no JSON that can be used"),
        (b"[1, 2, 3]", "holds no layer scores"),
        (b'{"format": "sparsight layer scores 1"}', "`scores` is no object of scores by name"),
        (b'{"format": "sparsight layer scores 1", "scores": {"a": [1.0, 2.0]}}', "`scores` is no object"),
        (
            b'{"format": "sparsight layer scores 1", "scores": {"a": {"values": [1]}, "a": {"values": [2]}}}',
            "'a' twice",
        ),
    ],
)
def test_files_that_hold_no_scores_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{message}.*make them with `sparsight analyze`"):
        TopK(str(path), "a", count=1).select(1)
    with pytest.raises(ValueError, match=message):  # so before the model's weights are looked for
        SparseLayerTuning("no model", [TuningStage(steps=1)], layers=TopK(str(path), "a", count=1))


@pytest.mark.parametrize(
    ("selection", "depth", "message"),
    [
        (Explicit([True, 2]), 4, "names layer True; layers are whole numbers"),
        (Explicit(["1"]), 4, "names layer '1'"),  # type: ignore[list-item]
        (Explicit([1.0]), 4, r"names layer 1\.0"),  # type: ignore[list-item]
        (Uniform(5), 4, "count is 5, but the decoder has 4 layers"),
        (Uniform(4, offset=1), 4, r"Uniform names layers \[4\], but the decoder has 4: 0 to 3"),
        (Uniform(4, offset=-1), 4, r"names layers \[-1\]"),
        (Preset("visual_region_code"), 40, "published for 32 layers and the decoder has 40"),
        (Consecutive("lower_middle", 3), 5, "3 layers do not fit into the lower_middle half of 5"),
        (Consecutive("upper_middle", 4), 6, "do not fit"),
        (Hybrid(2, 3), 4, "overlap in a decoder of 4 layers"),
        (Explicit([1, 1]), 4, r"names layers \[1\] more than once"),
        (Explicit([-1]), 4, r"names layers \[-1\]"),
        (Explicit([]), 4, "names no layer"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_fit_a_decoder_is_refused(selection: LayerSelection, depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection.select(depth)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(), "either count or ratio"),
        (lambda: Uniform(2, 0.5), "either count or ratio"),
        (lambda: Uniform(0), "count is a number of layers from 1; got 0"),
        (lambda: Random(ratio=1.5), "above 0 up to 1; got 1.5"),
        (lambda: Uniform(2, rule="even"), "rule is one of floor, .*; got 'even'"),  # type: ignore[arg-type]
        (lambda: Consecutive("middle", 2), "place is one of bottom, .*; got 'middle'"),  # type: ignore[arg-type]
        (lambda: Preset("best"), "name is one of visual_region_code, visual_region_paper; got 'best'"),
        (lambda: Hybrid(0, 2), "numbers of layers from 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_top_k_refuses_files_and_scores_that_do_not_fit(scores: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no score 'b'; there are: a, window"):
        TopK(scores, "b", count=1).select(4)
    with pytest.raises(ValueError, match="scores 4 layers, but the decoder has 5"):
        TopK(scores, "a", count=1).select(5)
    with pytest.raises(ValueError, match=r"has no number for layers \[3\]"):
        TopK(scores, "window", count=1).select(4)
    with pytest.raises(FileNotFoundError, match="sparsight analyze"):
        TopK(str(tmp_path / "none.json"), "a", count=1).select(4)


def test_a_rule_of_scores_is_recorded_with_its_numbers_and_without_its_folder(tmp_path: Path) -> None:
    facts = {"samples": 8, "data_sha256": "abc", "model": "some/model"}
    ScoreTable({"a": [1.0, 3.0, 2.0], "b": [0.0, 0.0, 0.0]}, facts=facts).save(tmp_path / "scores.json")
    record = TopK(str(tmp_path / "scores.json"), "a", count=1).record()
    assert record["rule"] == "TopK" and record["options"]["scores"] == "scores.json"
    assert record["measured"] == {"score": "a", "values": [1.0, 3.0, 2.0], "samples": 8, "data_sha256": "abc"}
    assert str(tmp_path) not in str(record)


def test_a_selection_is_given_in_yaml_by_its_class_name() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--layers", type=LayerSelection)
    given = {"class_path": "Uniform", "init_args": {"ratio": 0.25, "rule": "linspace"}}
    layers = parser.instantiate_classes(parser.parse_object({"layers": given})).layers
    assert layers.select(8) == [0, 7]
