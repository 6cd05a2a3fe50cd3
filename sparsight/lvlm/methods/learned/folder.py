"""Recipes by themselves in a folder: methods and options as JSON, their weights as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blocks
from blocks.tokens.base import Edit
from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text
from sparsight.lvlm.methods.carried import KEY
from sparsight.lvlm.methods.learned.weights import write_weights
from sparsight.lvlm.methods.recipe import Recipe

FILE = "recipe.json"
EXPORT = "config.json"  # of an exported model, which has the recipe in it


def write_recipe(recipe: Recipe, folder: str | Path) -> None:
    """Write ``recipe.json``, and ``recipe.safetensors`` if methods have weights.

    Raises:
        ValueError: Methods have no weights yet.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    write_weights(recipe.weighted, place)
    write_text(place / FILE, json_text({KEY: recipe.record()}))


def read_recipe(folder: str | Path, own: Mapping[str, type[Edit]] | None = None) -> Recipe:
    """The recipe in a folder that ``write_recipe`` made, or of an exported model.

    Weights are read when it meets a model.

    Args:
        folder: It.
        own: Classes of methods that are not in ``blocks``, by name.

    Raises:
        ValueError: There is none, or a method of it is not known.
    """
    place = Path(folder)
    file = next((place / name for name in (FILE, EXPORT) if (place / name).is_file()), None)
    if file is None:
        raise ValueError(f"{place} has neither {FILE} nor {EXPORT}: it holds no recipe")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{file} is damaged: {problem}") from problem
    if not isinstance(content, Mapping) or KEY not in content:
        raise ValueError(f"{file} holds no recipe: a model is exported with one if it was trained under one")
    known = {**_of_blocks(), **(own or {})}
    methods = [_made(entry, known, file) for entry in content[KEY]]
    recipe = Recipe(methods)
    for method in recipe.weighted.values():
        method.trained = str(place)
    return recipe


def _of_blocks() -> dict[str, Any]:
    return {name: kind for name, kind in vars(blocks).items() if isinstance(kind, type) and issubclass(kind, Edit)}


def _made(entry: Mapping[str, Any], known: Mapping[str, Any], file: Path) -> Edit:
    name = entry["method"]
    if name not in known:
        raise ValueError(f"{file} names the method {name}, which is not in blocks: give its class as `own`")
    method: Edit = known[name](**entry["options"])
    return method
