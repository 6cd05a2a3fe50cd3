"""A conformance test for token mixers, to run on your own: `check_mixer(MyMixer)` in a test file is enough."""

from sparsight.testing.check import GRIDS, check_mixer
from sparsight.testing.inputs import (
    SITE,
    Referenced,
    apply_mixer,
    apply_reference,
    at_exact_limit,
    attend,
    random_inputs,
    random_teacher,
    relative_l2,
)

__all__ = [
    "GRIDS",
    "SITE",
    "Referenced",
    "apply_mixer",
    "apply_reference",
    "at_exact_limit",
    "attend",
    "check_mixer",
    "random_inputs",
    "random_teacher",
    "relative_l2",
]
