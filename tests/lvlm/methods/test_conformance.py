"""Every method on models of many families: decoded, batched and padded answers are the plain ones."""

from __future__ import annotations

import pytest
from torch import Tensor

from blocks.tokens import (
    DivPrune,
    FasterVLM,
    FastV,
    PyramidDrop,
    RandomTokens,
    TokenMap,
    UniformTokens,
    VisionZip,
    VisPruner,
)
from blocks.tokens.token_map import ANSWER
from sparsight.lvlm.methods.conformance import check_methods
from tests.tiny_methods import METHODS, NEAR, SERVED, is_served, tried
from tests.tiny_rows import few


# merged tokens, tokens lost with gaps and renumbered, weights changed, and all kinds at once; every other method and
# kernel is tried by test_all_methods_in_all_families
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("vision_zip", "sdpa"), ("fast_v", "eager"), ("pyramid_drop", "sdpa"), ("var", "sdpa"), ("five", "eager")],
)
def test_decoded_answers_are_the_plain_ones(name: str, kernel: str) -> None:
    model, samples = tried("llava")
    model.set_attn_implementation(kernel)
    check_methods(METHODS[name], model, samples)


@pytest.mark.parametrize("name", few(["renumbered", "pyramid_drop", "five"], "five"))
def test_static_caches_hold_more_columns_than_tokens(name: str) -> None:
    model, samples = tried("llava")
    check_methods(METHODS[name], model, samples, trains=False, cache_implementation="static")


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_three_kinds_and_more_work_together_in_other_families(family: str) -> None:
    model, samples = tried(family)
    check_methods(METHODS["five"], model, samples, tolerance=NEAR[family], trains=family == "gemma3")


@pytest.mark.slow
@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("name", METHODS)
def test_all_methods_in_all_families(name: str, family: str) -> None:
    model, samples = tried(family)
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        if is_served(family, name):
            check_methods(METHODS[name], model, samples, tolerance=NEAR[family])
        else:
            with pytest.raises(ValueError, match=r"several axes|vision tower"):
                check_methods(METHODS[name], model, samples)


@pytest.mark.parametrize(
    "method",
    [
        RandomTokens(1.0),
        UniformTokens(1.0, positions="renumber"),
        DivPrune(1.0),
        FasterVLM(1.0),
        VisPruner(1.0),
        VisionZip(1.0, 0.5),
        FastV(3, 1.0),
        PyramidDrop([2, 4], 1.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_keeping_all_changes_nothing(method: object) -> None:
    model, samples = tried("llava")
    check_methods(lambda: [method], model, samples, changes=False, trains=False)  # type: ignore[list-item]


def test_a_check_that_should_fail_does() -> None:
    model, samples = tried("llava")
    with pytest.raises(AssertionError, match="change logits by"):
        check_methods(lambda: [RandomTokens(1.0)], model, samples, trains=False)

    class Forgetful(FastV):
        """Decides otherwise once there is an answer."""

        def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
            return super().keep(tokens, -attention if bool((tokens.kind == ANSWER).any()) else attention)

    with pytest.raises(AssertionError, match="decoded in a padded batch"):
        check_methods(lambda: [Forgetful(3)], model, samples, trains=False)
