"""What a pass leaves for whoever asks after it: it is part of a graph, and no part of a copy."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Held:
    """A tensor, or nothing."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return Held()

    def __reduce__(self) -> Any:
        return Held, ()
