"""What a recipe costs and saves is measured where it keeps its promises, at numbers of image tokens that are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blocks.edits import ImageGuidance
from blocks.tokens import FastV, TokenMap
from blocks.tokens.token_map import ANSWER
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.methods.cost.benchmark import benchmark_recipe
from sparsight.lvlm.methods.recipe import Recipe
from tests.tiny_methods import tried
from tests.tiny_tokens import IMAGE


def prompt(images: int) -> dict[str, Any]:
    """A question of so many images of 16 tokens."""
    ids = torch.tensor([[1, *[20, *[IMAGE] * 16] * images, 30, 31, 32][: 17 * images + 4]])
    torch.manual_seed(images)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(images, 3, 16, 16),
    }


def test_rows_tell_prompts_answers_memory_and_second_passes(tmp_path: Path) -> None:
    model, _ = tried("llava")
    recipe = Recipe([FastV(1, 0.25), ImageGuidance()])
    rows = benchmark_recipe(model, recipe, prompt, tokens=(16, 20, 128, 4096), runs=1, folder=tmp_path)
    assert [row["image_tokens"] for row in rows] == [16, 128]  # 20 is one image too, and 4096 is longer than it reads
    for row in rows:
        assert all(row[f"{name}_plain"] > 0 for name in ("prefill_seconds", "peak_bytes", "prefill_flops"))
        assert row["second_pass_seconds"] != 0
    told = json.loads((tmp_path / "benchmark.json").read_text())
    assert told["rows"] == rows and told["recipe"] == recipe.record() and told["attention"] == "sdpa"
    (alone,) = benchmark_recipe(model, Recipe([FastV(1, 0.25)]), prompt, tokens=(128,), runs=1)
    assert alone["prefill_flops_recipe"] < 0.7 * alone["prefill_flops_plain"] and "second_pass_seconds" not in alone
    assert alone["prefill_flops_recipe"] < rows[1]["prefill_flops_recipe"]


class Forgetful(FastV):
    """Decides otherwise once there is an answer."""

    def keep(self, tokens: TokenMap, attention: Tensor) -> Tensor:
        return super().keep(tokens, -attention if bool((tokens.kind == ANSWER).any()) else attention)


def test_what_breaks_a_promise_is_not_timed() -> None:
    model, _ = tried("llava")
    with pytest.raises(ConfigurationError, match="breaks a promise on this model: decoded in a padded"):
        benchmark_recipe(model, Recipe([Forgetful(3)]), prompt)
