"""Methods of recipes on the tiny image-text models: one of each, and what they are tried with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from blocks import edits, tokens
from blocks.tokens import Edit, Shape, Weighted
from tests.tiny_batches import alone
from tests.tiny_families import HYBRIDS
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm

SERVED = (
    *("llava", "llava_qwen2", "llava_next", "llava_onevision", "fast_vlm", "paligemma", "gemma3", "internvl"),
    *("qwen2_5_vl", "qwen3_vl", "qwen3_5", "lfm2_vl", "smolvlm", "idefics3"),
)
NEAR = {family: 5e-4 if family in HYBRIDS else 2e-5 for family in SERVED}  # largest difference of logits
NEAR["fast_vlm"] = 4e-5  # 2.2e-5 seen
LOOKING = {  # into the vision tower
    *("faster_vlm", "vis_pruner", "vision_zip", "vtc_cls", "fo_pru", "fo_pru_rows", "vmtc", "visual_boost", "damro"),
}
PATCHWISE = (  # a square or a run of patches for each image token
    *("llava", "llava_qwen2", "llava_next", "llava_onevision", "paligemma", "gemma3", "internvl"),
    *("smolvlm", "idefics3", "qwen3_vl", "qwen3_5"),
)
RENUMBERING = {"renumbered", "pyramid_drop", "gem_filter", "gamma_mod", "slime_renumbered", "tc_positions", "tc_both"}
SEVERAL_AXES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")  # of positions
ONE_BY_ONE = {"feather", "cmai", "gamma_mod_kept", "eas"}  # ask for attention in layers that hybrids have a state in
NOT_PLAIN = ("gemma3", "qwen3_vl", "qwen3_5", "lfm2_vl")  # layers with more norms, or without attention
IN_TOWER = {"llava_hr", "inf_llava", "both_towers"}  # of LLaVA's kind
TRAINING = {"long_lora", "sink_lora", "asa"}  # change nothing in what is answered


def stirred(method: Weighted, size: float = 0.3, leaning: float = 0.0) -> Edit:
    """A method whose fresh weights are moved at random, as if they had learnt something.

    Args:
        method: Fresh.
        size: Standard deviation of the moves.
        leaning: What the last number of every bias gets on top: gates then choose as that says, more often than not.
    """
    fresh = method.make

    def make(shape: Shape) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # or the weights, and with them what rounding does, would hang on what ran before
            held = fresh(shape)
        drawn = torch.Generator().manual_seed(0)
        for parameter in held.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=drawn)
            if parameter.ndim == 1:
                parameter.data[-1] += leaning
        return held

    vars(method)["make"] = make
    return method


METHODS: dict[str, Callable[[], list[Edit]]] = {
    "random": lambda: [tokens.RandomTokens()],
    "no_image": lambda: [tokens.WithoutImages()],
    "renumbered": lambda: [tokens.UniformTokens(positions="renumber")],
    "div_prune": lambda: [tokens.DivPrune(0.5)],
    "faster_vlm": lambda: [tokens.FasterVLM(0.5)],
    "vis_pruner": lambda: [tokens.VisPruner(0.5)],
    "vision_zip": lambda: [tokens.VisionZip(0.25, 0.25)],
    "vtc_cls": lambda: [tokens.LayerEnsemble(0.5)],
    "fo_pru": lambda: [tokens.FoPru(0.5)],
    "fo_pru_rows": lambda: [tokens.FoPru(0.5, group="row")],
    "vmtc": lambda: [tokens.ClusterMerge(0.25, 0.25)],
    "slime": lambda: [tokens.TextRouter(0.5)],
    "slime_queries": lambda: [stirred(tokens.QueryCompressor(2, 0.7))],
    "slime_renumbered": lambda: [stirred(tokens.QueryCompressor(3, 1.0, positions="renumber"))],
    "frozen_block": lambda: [stirred(tokens.FrozenBlock(-1), 0.1)],
    "llava_hr": lambda: [stirred(tokens.TwoResolutions([4, 4, 4, 4], [1, 1, 1, 1]))],
    "inf_llava": lambda: [stirred(tokens.DualPerspective(2, 4), 0.1)],
    "both_towers": lambda: [
        tokens.FasterVLM(0.5),
        stirred(tokens.DualPerspective(2, 4), 0.1),
        stirred(tokens.TwoResolutions([4, 4, 4, 4], [1, 1, 1, 1])),
    ],
    "gem_filter": lambda: [tokens.GemFilter(2, 0.5)],
    "gem_filter_kept": lambda: [tokens.GemFilter(2, 0.5, positions="keep")],
    "quota": lambda: [tokens.FrameBudgets(0.5)],
    "fast_v": lambda: [tokens.FastV(layer=3)],
    "pyramid_drop": lambda: [tokens.PyramidDrop(layers=[3])],
    "feather": lambda: [tokens.Feather([3, 4], [0.5, 0.5])],
    "fit_prune": lambda: [tokens.FitPrune(fitted([0, 0, 0.5, 0, 0, 0]))],
    "sparse_vlm": lambda: [tokens.SparseVLM([3], [0.4])],
    "sparse_vlm_merged": lambda: [tokens.SparseVLM([3], [0.25], recycle=0.6)],
    "dyvte": lambda: [stirred(tokens.DynamicExit(2, 8), leaning=1.0)],
    "gamma_mod": lambda: [stirred(tokens.GammaMoD([2, 5]), 1.0)],
    "gamma_mod_kept": lambda: [stirred(tokens.GammaMoD([1, 3, 4], positions="keep"), 1.0)],
    "aki": lambda: [edits.ModalityMutualAttention()],
    "croc": lambda: [edits.CrocAttention()],
    "croc_prompt": lambda: [edits.CrocAttention(prompt=True)],
    "tc_llava": lambda: [edits.FrameBlockAttention()],
    "tc_positions": lambda: [edits.FramePositions(3)],
    "tc_both": lambda: [edits.FramePositions(2), edits.FrameBlockAttention(), tokens.FastV(3), tokens.DivPrune(0.6)],
    "ee_mllm": lambda: [edits.CompositeAttention()],
    "knockout": lambda: [edits.Knockout("question", "image", [1, 2, 3])],
    "knockout_last": lambda: [edits.Knockout("last", "question", [2, 3])],
    "long_lora": lambda: [edits.ShiftedGroups(3)],
    "sink_lora": lambda: [edits.SinkGroups(3, 2)],
    "s2_attention": lambda: [edits.StridedBlocks(block=3, local=2, stride=2, dense=1)],
    "moa": lambda: [edits.ElasticSpans({2: [[2, 0.2], [8, 0], [0, 0.5], [100, 0]], 5: [[3, 0]] * 4}, sinks=1)],
    "cmai": lambda: [edits.CorrelationMask([3], 0.25)],
    "yopo_window": lambda: [edits.NeighbourWindow(1)],
    "yopo_heads": lambda: [edits.InactiveHeads({2: [1, 3], 5: [0]})],
    "yopo_feed": lambda: [edits.FeedForwardCut(0.5)],
    "yopo_exit": lambda: [edits.VisualExit(4)],
    "var": lambda: [edits.VisualAttentionRedistribution([0, 3], tau=1.5, image=0.05, rho=0.1)],
    "act": lambda: [edits.SinkCalibration({5: [0, 1, 2]}, threshold=0.05)],
    "visual_boost": lambda: [edits.VisualBoost()],
    "temp_scale": lambda: [edits.TemperatureScale(0.7)],
    "asa": lambda: [stirred(edits.AdversarialAttention(layers=[2, 5]))],
    "dual_softmax": lambda: [edits.DualSoftmax()],
    "softplus": lambda: [edits.SoftplusAttention(length=16)],
    "a_shape": lambda: [edits.AShape(2, 4)],
    "vertical_slash": lambda: [edits.VerticalSlash(3, 2, last=4, first=1)],
    "block_sparse": lambda: [edits.BlockSparse(4, 2)],
    "hip": lambda: [edits.HierarchicalPruning(4)],
    "seer": lambda: [stirred(edits.GatedBlocks(0.3, block=3, layers=[2, 5]))],
    "seer_top": lambda: [stirred(edits.GatedBlocks(None, 2, block=3, layers=[2, 5]))],
    "cca": lambda: [edits.CoreContext(3, 4)],
    "lofit": lambda: [stirred(edits.LoFiT(2, layers=[2, 5]))],
    "eas": lambda: [stirred(edits.AttentionSkip([3, 5], width=4))],
    "heads": lambda: [edits.HeadAblation({2: [1, 3], 5: [0]})],
    "vhr": lambda: [edits.VisionAwareHeads(first_layer=5)],
    "damro": lambda: [edits.OutlierContrast(outliers=2, beta=0)],
    "lacing": lambda: [edits.ImageGuidance()],
    "agla": lambda: [edits.RelevantImage(beta=0)],
    "soft_prompt": lambda: [stirred(edits.SoftPromptGuidance(3))],
    "five": lambda: [
        edits.HeadAblation({2: [1]}),
        edits.VisualAttentionRedistribution([0, 3], tau=1.5, image=0.05, rho=0.1),
        tokens.FastV(layer=3),
        edits.ModalityMutualAttention(),
        tokens.DivPrune(0.5),
    ],
    "seven": lambda: [
        edits.ImageGuidance(beta=0.01),
        edits.FeedForwardCut(0.5),
        edits.VisionAwareHeads(1.5, first_layer=5),
        edits.TemperatureScale(0.8),
        tokens.SparseVLM([3], [0.3]),
        edits.CompositeAttention(),
        tokens.FrameBudgets(0.7),
    ],
}
BOTH_WAYS = {family: {"croc", "tc_llava"} for family in ("paligemma", "gemma3")}  # images see themselves anyway


def fitted(drop: list[float]) -> dict[str, Any]:
    """A calibration of FitPrune that fits any model."""
    return {"kind": "FitPruneShares", "made_with": {}, "values": {"drop": drop}}


def changes(family: str, name: str) -> bool:
    """Whether a method changes what a model answers."""
    return name not in TRAINING and name not in BOTH_WAYS.get(family, ())


def is_served(family: str, name: str) -> bool:
    """Whether a family has what a method needs."""
    if family in HYBRIDS and name in ONE_BY_ONE:
        return False
    if name in IN_TOWER and not family.startswith("llava"):
        return False
    if name == "frozen_block" and family in NOT_PLAIN:
        return False
    return (name not in LOOKING or family in PATCHWISE) and (name not in RENUMBERING or family not in SEVERAL_AXES)


def tried(family: str) -> tuple[Any, list[dict[str, Any]]]:
    """A model with torch's attention, made once, and two single samples of different lengths with an image each."""
    model, samples = _made(family)
    model.set_attn_implementation("sdpa")  # other tests try other kernels
    return model, samples


@cache
def _made(family: str) -> tuple[Any, list[dict[str, Any]]]:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    return model, [alone(inputs, row) for row in range(2)]
