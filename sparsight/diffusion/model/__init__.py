"""A pretrained diffusion model as one object: noising, conditioning, encoding, sampling."""

from __future__ import annotations

from typing import Any

from sparsight.common.moved import find_moved


def __getattr__(name: str) -> Any:
    """Names of the module that was called like this room."""
    return find_moved(__name__, name)
