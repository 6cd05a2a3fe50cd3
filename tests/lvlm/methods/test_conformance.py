"""Every method on models of many families: decoded, batched and padded answers are the plain ones."""

from __future__ import annotations

import json

import pytest
from torch import Tensor

from blocks import edits, tokens
from blocks.tokens import Edit, FastV, RandomTokens, TokenMap
from blocks.tokens.token_map import ANSWER
from sparsight.lvlm.methods.conformance import check_methods
from tests.tiny_methods import METHODS, NEAR, SERVED, changes, is_served, tried
from tests.tiny_rows import few


# merged tokens, tokens lost with gaps and renumbered, weights changed, and all kinds together; every other method and
# kernel is tried by test_all_methods_in_all_families
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("vision_zip", "sdpa"),
        ("fast_v", "eager"),
        ("pyramid_drop", "sdpa"),
        ("var", "sdpa"),
        ("five", "eager"),
        ("seven", "sdpa"),
    ],
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
            told = {"tolerance": NEAR[family], "changes": changes(family, name)}
            check_methods(METHODS[name], model, samples, **told)
        else:
            with pytest.raises(ValueError, match=r"several axes|vision tower|needs attention"):
                check_methods(METHODS[name], model, samples)


NOTHING: dict[str, Edit] = {  # methods that are told to change nothing
    "random": RandomTokens(1.0),
    "uniform": tokens.UniformTokens(1.0, positions="renumber"),
    "div_prune": tokens.DivPrune(1.0),
    "faster_vlm": tokens.FasterVLM(1.0),
    "vis_pruner": tokens.VisPruner(1.0),
    "vision_zip": tokens.VisionZip(1.0, 0.5),
    "vtc_cls": tokens.LayerEnsemble(1.0),
    "fo_pru": tokens.FoPru(1.0, group="row"),
    "vmtc": tokens.ClusterMerge(1.0, 0.5),
    "slime": tokens.TextRouter(1.0),
    "gem_filter": tokens.GemFilter(2, 1.0),
    "quota": tokens.FrameBudgets(1.0),
    "fast_v": FastV(3, 1.0),
    "pyramid_drop": tokens.PyramidDrop([2, 4], 1.0),
    "feather": tokens.Feather([2, 4], [1.0, 1.0]),
    "sparse_vlm": tokens.SparseVLM([2, 4], [1.0, 1.0]),
    "s2_attention": edits.StridedBlocks(block=64),
    "moa": edits.ElasticSpans({1: [[1000, 0]] * 4}),
    "cmai": edits.CorrelationMask([2], 1.0),
    "act": edits.SinkCalibration({2: [0, 1]}, beta=1.0, threshold=0.0),
    "visual_boost": edits.VisualBoost(0.0, 0.0),
    "temp_scale": edits.TemperatureScale(1.0),
    "cca": edits.CoreContext(),
    "seer": edits.GatedBlocks(0.0, block=4),
    "a_shape": edits.AShape(),
    "vertical_slash": edits.VerticalSlash(),
    "block_sparse": edits.BlockSparse(),
    "hip": edits.HierarchicalPruning(512),
    "yopo_feed": edits.FeedForwardCut(1.0),
    "vhr": edits.VisionAwareHeads(1.0),
    "damro": edits.OutlierContrast(0.0, beta=0.0),
    "lacing": edits.ImageGuidance(1.0),
    "agla": edits.RelevantImage(0.0, beta=0.0),
    "soft_prompt": edits.SoftPromptGuidance(2, 1.0),
}


@pytest.mark.parametrize("name", few(NOTHING, "uniform", "vision_zip", "feather", "gem_filter", "hip", "vhr", "lacing"))
def test_methods_that_are_told_to_change_nothing_do(name: str) -> None:
    model, samples = tried("llava")
    check_methods(lambda: [NOTHING[name]], model, samples, changes=False, trains=False)


@pytest.mark.parametrize("name", METHODS)
def test_methods_can_be_made_anew_from_their_records(name: str) -> None:
    for method in METHODS[name]():
        record = json.loads(json.dumps(method.record()))
        again = type(method)(**record["options"])
        assert again.record() == method.record() and record["method"] == type(method).__name__


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
