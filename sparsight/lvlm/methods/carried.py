"""What makes a class with a recipe out of a class of transformers; this file's text travels inside exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

from blocks.tokens.base import Edit
from sparsight.lvlm.methods.recipe import Recipe

KEY = "recipe"  # of the model's configuration


def with_recipe(base: type[Any], methods: Mapping[str, type[Edit]]) -> type[Any]:
    """A subclass that always works under the recipe in its configuration.

    Args:
        base: A class of ``AutoModelForImageTextToText``.
        methods: Classes by the names that the recipe knows them by.
    """

    class WithRecipe(base):
        """A model with a recipe."""

        _is_busy = False

        @classmethod
        def is_custom_code(cls) -> bool:
            """No: weights have the names that the stock class reads."""
            return False

        def _under(self, work: Any, *args: Any, **options: Any) -> Any:
            if self._is_busy:
                return work(*args, **options)
            self._is_busy = True
            try:
                with recipe_of(vars(self.config)[KEY], methods).on(self):
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
