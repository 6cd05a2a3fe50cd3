"""Methods of recipes on the tiny image-text models: one of each, and what they are tried with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from blocks.edits import HeadAblation, ModalityMutualAttention, VisualAttentionRedistribution
from blocks.tokens import (
    DivPrune,
    Edit,
    FasterVLM,
    FastV,
    PyramidDrop,
    RandomTokens,
    UniformTokens,
    VisionZip,
    VisPruner,
)
from tests.tiny_batches import alone
from tests.tiny_families import HYBRIDS
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm

SERVED = (
    *("llava", "llava_qwen2", "llava_next", "llava_onevision", "fast_vlm", "paligemma", "gemma3", "internvl"),
    *("qwen2_5_vl", "qwen3_vl", "qwen3_5", "lfm2_vl", "smolvlm", "idefics3"),
)
NEAR = {family: 3e-4 if family in HYBRIDS else 2e-5 for family in SERVED}  # largest difference of logits
LOOKING = {"faster_vlm", "vis_pruner", "vision_zip"}  # into the vision tower
PATCHWISE = (  # a square or a run of patches for each image token
    *("llava", "llava_qwen2", "llava_next", "llava_onevision", "paligemma", "gemma3", "internvl"),
    *("smolvlm", "idefics3", "qwen3_vl", "qwen3_5"),
)
RENUMBERING = {"renumbered", "pyramid_drop"}
SEVERAL_AXES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")  # of positions

METHODS: dict[str, Callable[[], list[Edit]]] = {
    "random": lambda: [RandomTokens()],
    "renumbered": lambda: [UniformTokens(positions="renumber")],
    "div_prune": lambda: [DivPrune(0.5)],
    "faster_vlm": lambda: [FasterVLM(0.5)],
    "vis_pruner": lambda: [VisPruner(0.5)],
    "vision_zip": lambda: [VisionZip(0.25, 0.25)],
    "fast_v": lambda: [FastV(layer=3)],
    "pyramid_drop": lambda: [PyramidDrop(layers=[3])],
    "aki": lambda: [ModalityMutualAttention()],
    "var": lambda: [VisualAttentionRedistribution([0, 3], tau=1.5, image=0.05, rho=0.1)],
    "heads": lambda: [HeadAblation({2: [1, 3], 5: [0]})],
    "five": lambda: [
        HeadAblation({2: [1]}),
        VisualAttentionRedistribution([0, 3], tau=1.5, image=0.05, rho=0.1),
        FastV(layer=3),
        ModalityMutualAttention(),
        DivPrune(0.5),
    ],
}


def is_served(family: str, name: str) -> bool:
    """Whether a family has what a method needs."""
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
