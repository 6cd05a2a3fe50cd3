"""Lets an exported image-text model carry the recipe that it was trained under.

The recipe stands in the model's configuration as plain data, weights of its methods in a file beside the model's, and
one file of code puts it on where the folder is loaded with ``trust_remote_code``. Without that the folder holds a stock
model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sparsight.lvlm.methods.carried
from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text
from sparsight.lvlm.methods.learned.weights import write_weights
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.publish.carry.assemble import CodeFile, assemble, carried_name, file_of, source_of
from sparsight.publish.carry.closure import SourceFile, closure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AUTO = "AutoModelForImageTextToText"


def recipe_file(recipe: Recipe, base: type[PreTrainedModel]) -> CodeFile:
    """The file of code.

    Raises:
        ValueError: A method's file imports what cannot travel, or its class is not at the top of a file.
    """
    carried, name = sparsight.lvlm.methods.carried, base.__name__  # by which transformers knows old names of weights
    kinds = {type(method).__name__: type(method) for method in recipe.methods}
    files = [SourceFile(kind.__module__, source_of(kind)) for kind in kinds.values()]
    table = "".join(f"        {title!r}: {carried_name(kind)},\n" for title, kind in sorted(kinds.items()))
    body = f'''\
    METHODS = {{
{table}    }}

    class {name}(FILES.get("{carried.__name__}.with_recipe")(Stock, METHODS)):
        """The class of that name under the recipe in its configuration."""

        _auto_class = "{AUTO}"
'''
    sources = closure([file_of(carried), *files])
    return assemble(
        "modeling", sources, f"from transformers import {name} as Stock", body, name, library="transformers"
    )


def carry_recipe(folder: Path, recipe: Recipe, base: type[PreTrainedModel]) -> None:
    """Write recipe and code into an exported folder.

    Artefacts of calibration travel inside; what they were made with is that of the base, which the folder no longer is.
    """
    code = recipe_file(recipe, base)
    code.write(folder)
    write_weights(recipe.weighted, folder)
    path = folder / "config.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content[sparsight.lvlm.methods.carried.KEY] = [_at_home(method) for method in recipe.record()]
    content["auto_map"] = {AUTO: f"{code.stem}.{code.class_name}"}
    write_text(path, json_text(content))


def _at_home(method: dict[str, Any]) -> dict[str, Any]:
    options = dict(method["options"])
    if isinstance(options.get("artefact"), dict):
        made_with = {"shape": options["artefact"]["made_with"].get("shape")}
        options["artefact"] = {**options["artefact"], "made_with": made_with}
    return {**method, "options": options}
