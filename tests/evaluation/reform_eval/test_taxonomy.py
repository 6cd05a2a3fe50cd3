"""The taxonomy: 2 abilities and ours, 8 dimensions and ours, 61 data sets, and what a wrong name is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import yaml

from sparsight.command.arguments import find_config
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.reform_eval.taxonomy import (
    Layout,
    abilities,
    check_dimension,
    data_sets,
    dimensions,
    find_data_set,
    find_layout,
)

# README of FudanDISC/ReForm-Eval, section "Data Usage"
SIZES = {
    "coarse_perception": 9,
    "fine_perception": 10,
    "scene_text": 15,
    "visual_reasoning": 12,
    "spatial": 3,
    "cross_modal_inference": 6,
    "description": 4,
    "dialogue": 2,
}


def test_61_data_sets_fall_into_8_dimensions() -> None:
    assert Counter(found.dimension for found in data_sets()) == SIZES
    assert sum(SIZES.values()) == 61
    assert dimensions() == (*SIZES, "text_only", "benchmark")
    assert {found.ability for found in data_sets()} == {"perception", "cognition"}
    assert abilities()["language"] == ("text_only",)
    for found in data_sets():
        assert found.dimension in abilities()[found.ability]


def test_formulations_are_known_and_only_captions_are_generation() -> None:
    of = {found.name: found.formulation for found in data_sets()}
    assert set(of.values()) == set(get_args(Formulation))
    assert {n for n, formulation in of.items() if formulation == "Generation"} == {
        found.name for found in data_sets() if found.dimension == "description"
    }
    assert [n for n, formulation in of.items() if formulation == "KIEOpenEnded"] == ["FUNSD"]
    assert {found.dimension for found in data_sets() if of[found.name] == "OCROpenEnded"} == {"scene_text"}


def test_names_and_files_are_unique_but_for_tdiuc() -> None:
    assert len({found.name for found in data_sets()}) == 61
    shared = [file for file, times in Counter(found.file for found in data_sets()).items() if times > 1]
    assert shared == ["huggingface_data/TDIUC/TDIUC_val_ques.json"]
    kinds = [found.layout.where["question_type"] for found in data_sets() if found.file == shared[0]]
    assert len(set(kinds)) == 7
    assert all(found.file.startswith("huggingface_data/") and found.file.endswith(".json") for found in data_sets())


def test_every_layout_says_where_the_formulation_finds_its_parts() -> None:
    for found in data_sets():
        layout = found.layout
        assert layout.question or layout.wordings, found.name
        if found.formulation == "SingleChoice":
            assert layout.answer and (layout.options or layout.fixed_options or layout.pool), found.name
        else:
            assert layout.references, found.name


def test_wrong_names_are_told_close_ones() -> None:
    assert find_data_set("CIFAR10").task == "image_classification"
    with pytest.raises(ValueError, match=r"data set 'cifar-10' is unknown; did you mean 'CIFAR10'"):
        find_data_set("cifar-10")
    with pytest.raises(ValueError, match=r"dimension 'spacial' is unknown; did you mean 'spatial'"):
        check_dimension("spacial")
    with pytest.raises(ValueError, match="layout 'xyz' is unknown; known: core, list"):
        find_layout("xyz")
    with pytest.raises(ValueError, match="a layout has no field 'pictures'; it has records, id"):
        Layout().changed({"pictures": "img"})


def test_the_shipped_config_asks_all_of_them_once() -> None:
    config = yaml.safe_load(Path(find_config("reform_eval/published")).read_text(encoding="utf-8"))
    tasks = config["data"]["init_args"]["tasks"]
    assert [task["init_args"]["dataset"] for task in tasks] == [data_set.name for data_set in data_sets()]
    assert len({task["init_args"]["root"] for task in tasks}) == 1
