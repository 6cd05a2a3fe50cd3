"""Modules that can be measured under a recipe, known without an import of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

IMAGE_TOKENS = (49, 256, 576, 1024, 4096)


@runtime_checkable
class UnderRecipe(Protocol):
    """A module whose model may have a recipe."""

    recipe: Any

    def benchmark(self, tokens: Sequence[int], **options: Any) -> list[dict[str, Any]]:
        """Measure the recipe against the untouched model, at numbers of image tokens."""
        ...
