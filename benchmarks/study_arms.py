"""Arms of benchmarks.fashion_mnist_study: mixers with their options, and the budgets that all of them get alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import blocks

LONG_CONFIG = "experiment/fashion_mnist_study_long"
LONG = "delta_conv_default_long"
ATTENTION_LONG = "neighborhood_attention_9_long"
TRAJECTORY = "delta_conv_default_trajectory"
HYBRID = "delta_conv_default_hybrid"
GUIDED = "focal_cells_guided"
SAME_COST = (LONG, TRAJECTORY, HYBRID, GUIDED)  # built of what other arms are timed with

BUDGETS = {"screen": (200, 200), "leader": (400, 1200), "finalist": (600, 3000), "pairs": (800, 2600)}
"""Layer-wise and end-to-end steps, at batch 32; those of ``pairs`` at 16, of which the guided loss sees each twice."""


def plain(class_path: str, **options: object) -> dict[str, Any]:
    """A mixer as plain data."""
    return {"class_path": f"blocks.{class_path}", "init_args": options}


def factory_of(plain: Any) -> Any:
    """What the command makes of plain data: mixers in it become functions of a site."""
    if isinstance(plain, list):
        return [factory_of(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    options = {name: factory_of(value) for name, value in plain["init_args"].items()}
    return partial(getattr(blocks, plain["class_path"].removeprefix("blocks.")), **options)


def plain_of(options: Sequence[str]) -> dict[str, Any]:
    """The mixer among command-line options, as plain data."""
    found: dict[str, Any] = json.loads(options[options.index("--model.mixer") + 1])
    return found


def mixer(class_path: str, **options: object) -> list[str]:
    """Command-line options that choose a mixer."""
    return ["--model.mixer", json.dumps(plain(class_path, **options))]


NEAR = plain("NeighborhoodAttention", kernel_size=7)
FOCAL_CELLS = mixer("Adapted", part=plain("FocalAttention", tile=8, halo=0, cells=8), value_kernel=5)
FOCAL = plain("FocalAttention", tile=8, halo=1, cell=8)

PUBLISHED: dict[str, list[str]] = {
    "delta_conv_default": mixer("DeltaConvBlock", preset="default"),
    "delta_conv_paper": mixer("DeltaConvBlock", preset="paper_pixart"),
    "delta_conv_released": mixer("DeltaConvBlock", preset="released_pixart"),
    "delta_conv_wide": mixer("DeltaConvBlock", preset="default", entry_width=1.0, kernel_size=11),
    "neighborhood_attention": mixer("NeighborhoodAttention", kernel_size=7),
    "no_mixing": mixer("NoMixing"),
    HYBRID: mixer("DeltaConvBlock", preset="default"),
    LONG: [*mixer("DeltaConvBlock", preset="default"), "--config", LONG_CONFIG],
    ATTENTION_LONG: [*mixer("NeighborhoodAttention", kernel_size=9), "--config", LONG_CONFIG],
    TRAJECTORY: [*mixer("DeltaConvBlock", preset="default"), "--config", "experiment/fashion_mnist_study_trajectory"],
}
"""Arms of the first study, docs/study.md."""

ALL_MIXERS: dict[str, list[str]] = {
    "attention": mixer("SoftmaxAttention"),
    "neighborhood_9": mixer("NeighborhoodAttention", kernel_size=9),
    "clear": mixer(
        "Merge",
        parts=[plain("DiscAttention", radius=4), plain("PooledAttention", tile=4, pooling="positions", counted=False)],
        shared_keys=True,
    ),
    "windows_shifted": mixer("WindowAttention", window=8, shifts=[0.0, 0.5]),
    "windows_grid": mixer("WindowAttention", window=8, dilation="grid"),
    "tiles": mixer("TileAttention", tile=8),
    "pooled": mixer("PooledAttention", tile=2),
    "hilo": mixer("HeadSplit", parts=[plain("WindowAttention", window=4), plain("PooledAttention", tile=2)]),
    "sharp_and_diffuse": mixer(
        "HeadSplit", parts=[plain("WindowAttention", window=8), plain("PooledAttention", tile=2)], by_entropy=True
    ),
    "near_and_pooled": mixer("Merge", parts=[NEAR, plain("PooledAttention", tile=4, without=NEAR)]),
    "focal": mixer("FocalAttention", tile=8, halo=1, cell=8),
    "focal_convolved": mixer("Adapted", part=FOCAL, value_kernel=5),
    "focal_cells": FOCAL_CELLS,
    GUIDED: [*FOCAL_CELLS, "--data.batch_size", "16"],
    "focal_small": mixer("Adapted", part=plain("FocalAttention", tile=4, halo=2, cell=4), value_kernel=5),
    "linear_elu": mixer("KernelAttention", feature_map="elu"),
    "linear_sana": mixer("KernelAttention", feature_map="relu"),
    "linear_focused": mixer("Adapted", part=plain("KernelAttention", feature_map="focused"), value_kernel=5),
    "hedgehog": mixer("KernelAttention", feature_map="hedgehog"),
    "inline": mixer(
        "Adapted",
        part=plain("KernelAttention", feature_map="identity", normaliser="subtractive"),
        value_kernel=3,
        predicted=True,
    ),
    "rala": mixer("Adapted", part=plain("KernelAttention", feature_map="elu", augmented=True), gated=True),
    "lolcats": mixer("Merge", parts=[NEAR, plain("KernelAttention", without=NEAR)]),
    "linfusion": mixer("LinearAttention"),
    "agents": mixer("Adapted", part=plain("AgentAttention", cells=7), value_kernel=5),
    "routed_pooled": mixer("RoutedAttention", tile=4, keep=4, rest="pooled"),
    "seer_gate": mixer("RoutedAttention", tile=4, keep=4, router="gate", rest=None),
    "sla": mixer("RoutedAttention", tile=4, keep=4, rest="linear"),
    "clusters": mixer("ClusterAttention", group=64, cells=4),
    "large_kernel": mixer("LargeKernelAttention"),
    "frequencies": mixer("FrequencyFilter"),
    "local_scan": mixer("LocalScan"),
}
"""One arm or a few of every mixer in docs/mixers.md."""

UNTRAINED: dict[str, list[str]] = {
    "focal_tile_16": mixer("FocalAttention", tile=16, halo=0, cells=8, learned_balance=False),
    "focal_halo_4": mixer("FocalAttention", tile=8, halo=4, cells=8, learned_balance=False),
}
"""Arms without parameters, exported as they are."""

ARMS = PUBLISHED | ALL_MIXERS | UNTRAINED


LOSSES: dict[str, dict[str, Any]] = {GUIDED: {"loss": {"to_teacher": 0.0, "guided": 1.0}}}
"""Of arms that are trained with another loss than the configuration's; a layer-wise stage takes no notice."""


def name_of(arm: str, budget: str | None, training_seed: int) -> str:
    """What a run of an arm is called: the arm itself with the budget and seed of its configuration."""
    return "_".join([arm, *([budget] if budget else []), *([f"train{training_seed}"] if training_seed else [])])


def training_options(arm: str, budget: str | None, training_seed: int) -> list[str]:
    """Command-line options of an arm under a budget (``None`` for that of the configuration), with a training seed."""
    seed = str(training_seed)  # of new weights, noise and noise levels; that of the data decides what is held out, too
    options = ["--seed_everything", seed, "--model.seed", seed]
    if budget is None:
        return options
    rounds = zip(("layerwise", "end_to_end"), BUDGETS[budget], strict=True)
    stages = [
        {"objective": objective, "steps": steps, "lr": 1e-3, "lr_schedule": "cosine", "warmup_steps": 20}
        | LOSSES.get(arm, {})
        for objective, steps in rounds
    ]
    return [*options, "--model.stages", json.dumps(stages)]
