"""Mixers that are what they are meant to be without any training."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from blocks.base import TokenMixer
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.sharding import own_class

PROJECTIONS = "set model.trained.projections to true to train copies of the projections around"


def is_training_free(mixer: TokenMixer) -> bool:
    """Whether a mixer has no parameters, or options with which it equals the attention that it replaces."""
    if next(mixer.parameters(), None) is None:
        return True
    limit = type(mixer).exact_limit(mixer.site, mixer.site.grid)
    return limit is not None and all(mixer.options.get(name) == value for name, value in limit.items())


def learns_little(mixer: TokenMixer) -> bool:
    """Whether a mixer has fewer parameters than one row of a projection, such as the weights of its branches alone."""
    return sum(parameter.numel() for parameter in mixer.parameters()) < mixer.site.channels


def check_learns(mixers: Sequence[TokenMixer], trained: int) -> None:
    """Refuse to train nothing, and warn where hardly anything is trained.

    Args:
        mixers: Of a student.
        trained: How many numbers are trained, in them and around them.

    Raises:
        ConfigurationError: None are.
    """
    kinds = ", ".join(sorted({own_class(mixer).__name__ for mixer in mixers}))
    if not trained:
        raise ConfigurationError(
            f"{kinds} has no parameters, so nothing is trained: {PROJECTIONS} it, or use it as it is (validate, "
            "predict, benchmark, export)"
        )
    if trained < sum(mixer.site.channels for mixer in mixers):
        rank_zero_warn(
            f"only {trained} numbers are trained at {len(mixers)} sites, as {kinds} has hardly any parameters: "
            f"{PROJECTIONS} them"
        )
