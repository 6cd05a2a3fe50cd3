"""What makes a class with a recipe out of a class of transformers; this file's text travels inside exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from blocks.tokens.base import Edit
from sparsight.lvlm.methods.learned.weights import FILE, put_weights, read_weights, write_weights
from sparsight.lvlm.methods.recipe import Recipe

KEY = "recipe"  # of the model's configuration
WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "force_download", "proxies")


def with_recipe(base: type[Any], methods: Mapping[str, type[Edit]]) -> type[Any]:
    """A subclass that always works under the recipe in its configuration.

    Args:
        base: A class of ``AutoModelForImageTextToText``.
        methods: Classes by the names that the recipe knows them by.
    """

    class WithRecipe(base):
        """A model with a recipe."""

        _is_busy = False
        _recipe: Recipe | None = None

        @classmethod
        def from_pretrained(cls, source: Any, *args: Any, **options: Any) -> Any:
            """The stock class's, with the weights of the recipe's methods from the file beside the model's."""
            found = super().from_pretrained(source, *args, **options)
            model: Any = found[0] if isinstance(found, tuple) else found
            recipe = model._recipe = recipe_of(vars(model.config)[KEY], methods)
            if recipe.weighted:
                recipe.fit(model)
                file = cached_file(source, FILE, **{name: options[name] for name in WHERE if name in options})
                put_weights(recipe.weighted, read_weights(str(file)), source=str(source))
            return found

        def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
            """The stock class's, with the weights of the recipe's methods beside."""
            super().save_pretrained(save_directory, *args, **options)
            write_weights(self._own().weighted, Path(save_directory))

        def _own(self) -> Recipe:
            """The recipe.

            Raises:
                ValueError: Its methods have weights, and the model was not loaded but made afresh.
            """
            if self._recipe is None:
                self._recipe = recipe_of(vars(self.config)[KEY], methods)
                if self._recipe.weighted:
                    told = ", ".join(self._recipe.weighted)
                    raise ValueError(f"the recipe's {told} have weights in a file: load the model by from_pretrained")
            return self._recipe

        @classmethod
        def is_custom_code(cls) -> bool:
            """No: weights have the names that the stock class reads."""
            return False

        def _under(self, work: Any, *args: Any, **options: Any) -> Any:
            if self._is_busy:
                return work(*args, **options)
            self._is_busy = True
            try:
                with self._own().on(self):
                    return vars(self)[work.__name__](*args, **options)
            finally:
                self._is_busy = False

        @wraps(base.forward)
        def forward(self, *args: Any, **options: Any) -> Any:
            return self._under(super().forward, *args, **options)

        @wraps(base.generate)
        def generate(self, *args: Any, **options: Any) -> Any:
            return self._under(super().generate, *args, **options)

    return WithRecipe


def recipe_of(record: Sequence[Mapping[str, Any]], methods: Mapping[str, type[Edit]]) -> Recipe:
    """The recipe that a record tells of."""
    return Recipe([methods[entry["method"]](**entry["options"]) for entry in record])
