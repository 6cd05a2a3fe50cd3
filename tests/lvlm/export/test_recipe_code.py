"""A recipe travels with an exported model, and works where this project is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks.edits import ImageGuidance
from blocks.tokens import Edit, FastV, FitPrune, UniformTokens, VisionZip
from sparsight.lvlm.export import reload
from sparsight.lvlm.export.recipe_code import carry_recipe
from sparsight.lvlm.export.write import verify_lvlm, verify_recipe
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.model.processor import load_processor
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_methods import fitted
from tests.tiny_rows import few

LISTS: dict[str, list[Edit]] = {
    "reduced": [VisionZip(0.25, 0.25), FastV(3)],
    "calibrated": [FitPrune(fitted([0, 0, 0.25, 0, 0, 0])), UniformTokens(0.7)],
    "guided": [ImageGuidance(2.0)],
}


def written(folder: Path, methods: list[Edit]) -> tuple[Any, Any, Recipe]:
    """A model and its processor in a folder with a recipe."""
    save_tiny_lvlm(folder, "llava")
    model, recipe = load_lvlm(str(folder)).eval(), Recipe(methods)
    carry_recipe(folder, recipe, type(model))
    return model, load_processor(str(folder)), recipe


@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize("name", few(LISTS, "reduced"))
def test_a_folder_with_its_code_answers_under_the_recipe_and_without_as_ever(name: str, tmp_path: Path) -> None:
    model, processor, recipe = written(tmp_path / "out", LISTS[name])
    verify_recipe(model, processor, tmp_path / "out", recipe)
    assert verify_lvlm(model, processor, tmp_path / "out") < 1e-5
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [method["method"] for method in told["recipe"]] == [method["method"] for method in recipe.record()]
    inputs = reload.example_inputs(processor)
    with torch.no_grad(), Recipe([FastV(2, 0.1)]).on(model):
        other = model(**inputs).logits
    assert not torch.allclose(other, model(**inputs).logits, atol=1e-3)
    with pytest.raises(RuntimeError, match="answers differently under its recipe"):
        verify_recipe(model, processor, tmp_path / "out", Recipe([FastV(2, 0.1)]))


@pytest.mark.slow
def test_the_code_needs_nothing_of_this_project(tmp_path: Path) -> None:
    model, processor, recipe = written(tmp_path / "out", [*LISTS["reduced"], *LISTS["guided"]])
    verify_recipe(model, processor, tmp_path / "out", recipe)


def test_methods_that_cannot_travel_are_named(tmp_path: Path) -> None:
    class Own(FastV):
        """Of a function."""

    with pytest.raises(ValueError, match="Own cannot travel in an export"):
        written(tmp_path / "out", [Own(3)])
