"""Refusing to export what should have been trained and never was."""

from __future__ import annotations

from typing import Any

from sparsight.common.errors import ConfigurationError

REMEDY = "give a checkpoint with --ckpt_path, or set --untrained true if that is what you want"


def check_trained(module: Any, *, told: int | None, untrained: bool) -> str | None:
    """See that an export holds what was trained.

    Args:
        module: What is exported.
        told: Optimiser steps of a run that the module knows nothing of; none if there is no other.
        untrained: Whether an untrained model is wanted.

    Returns:
        What was not trained, for the card; none if there is nothing of that kind.

    Raises:
        ConfigurationError: Something should have been trained and was not, and that is not wanted.
    """
    lacking = None if told and module.steps_taken == 0 else module.untrained()
    if lacking is not None and not untrained:
        raise ConfigurationError(f"{lacking}: {REMEDY}")
    return lacking
