"""How a pretrained model is read: options of ``from_pretrained``, by its names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Which files of a model are meant, and whether code among them runs.

    Args:
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.
    """

    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def source(self) -> dict[str, Any]:
        """Both, as arguments of ``from_pretrained``."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
