"""A recipe against the untouched model, at numbers of image tokens: prompts, answers, second passes, memory.

Both run in turn in one process with one attention backend. Nothing is timed that does not keep its promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from blocks.edits.base import BranchDecoder, ComparedHeadEdit
from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError
from sparsight.common.measure.environment import environment
from sparsight.common.measure.latency import Timing, TooSlow, time_in_turn
from sparsight.common.measure.memory import peak_bytes
from sparsight.common.plain import setting
from sparsight.common.tables import WIDTH, csv_text, format_table, json_text
from sparsight.lvlm.methods.conformance import BY_TOKEN, check_methods
from sparsight.lvlm.methods.cost.under_recipe import IMAGE_TOKENS
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.tower import find_parts

NEW_TOKENS = 8
NEAR = {torch.float32: 3e-4}  # logits of large models; others are of lower precision
COARSE = 0.25
Inputs = Mapping[str, Any]


def benchmark_recipe(
    model: Any,
    recipe: Recipe,
    prompt: Callable[[int], Inputs],
    *,
    tokens: Sequence[int] = IMAGE_TOKENS,
    runs: int = 10,
    max_seconds: float = 20.0,
    processor: bool = False,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """Check, measure, print and write.

    Args:
        model: In eval mode, on its device.
        recipe: What is measured.
        prompt: Makes inputs with a number of images.
        tokens: Numbers of image tokens; prompts get as many images as come nearest.
        runs: Timed runs of each, taken in turn.
        max_seconds: Time for all runs of one.
        processor: Count processor time.
        folder: For ``benchmark.json`` and ``benchmark.csv``.

    Returns:
        One row for each number of image tokens.

    Raises:
        ConfigurationError: The recipe breaks a promise of ``sparsight.lvlm.methods.conformance`` on this model.
    """
    conforms(model, recipe, prompt)
    measure = partial(time_in_turn, device=model.device, runs=runs, max_seconds=max_seconds, processor=processor)
    rows = [_row(model, recipe, inputs, count, measure) for count, inputs in prompts(model, prompt, tokens)]
    print(format_table([{name: _shown(value) for name, value in row.items()} for row in rows], width=WIDTH))
    if folder is not None:
        facts = {
            "recipe": recipe.record(),
            "attention": model.config.get_text_config(decoder=True)._attn_implementation,
            "environment": environment(model.device),
            "rows": rows,
        }
        write_text(folder / "benchmark.json", json_text(facts))
        write_text(folder / "benchmark.csv", csv_text(rows))
        print(f"\nWritten to {folder}: benchmark.json, benchmark.csv")
    return rows


def conforms(model: Any, recipe: Recipe, prompt: Callable[[int], Inputs]) -> float:
    """See that a recipe keeps its promises on a model; the largest difference of logits.

    Raises:
        ConfigurationError: It does not.
    """
    whole = prompt(1)
    samples = [whole, {name: part[:, :-2] if name in BY_TOKEN else part for name, part in whole.items()}]
    try:
        found = check_methods(
            lambda: recipe.methods,
            model,
            samples,
            changes=None,
            trains=False,
            tolerance=NEAR.get(model.dtype, COARSE),
        )
    except AssertionError as broken:
        raise ConfigurationError(f"the recipe is not timed, as it breaks a promise on this model: {broken}") from broken
    return found["decoded"]


def prompts(model: Any, prompt: Callable[[int], Inputs], tokens: Sequence[int]) -> Iterator[tuple[int, Inputs]]:
    """Numbers of image tokens and inputs, of the wanted numbers that differ and that the model can read."""
    image_id = find_parts(model).image_token_id
    text = model.config.get_text_config(decoder=True)
    each = int((prompt(1)["input_ids"] == image_id).sum())
    for images in dict.fromkeys(max(round(wanted / each), 1) for wanted in sorted(tokens)):
        inputs = prompt(images)
        longest = setting(text, "max_position_embeddings")
        if longest is None or inputs["input_ids"].shape[1] + NEW_TOKENS <= longest:
            yield int((inputs["input_ids"] == image_id).sum()), inputs


def _row(
    model: Any, recipe: Recipe, inputs: Inputs, count: int, measure: Callable[..., dict[str, Timing | TooSlow]]
) -> dict[str, Any]:
    """Everything about one prompt."""
    single = [method for method in recipe.methods if not isinstance(method, (BranchDecoder, ComparedHeadEdit))]
    others: dict[str, Recipe | None] = {"plain": None, "recipe": recipe}
    if len(single) < len(recipe.methods):
        others["without second passes"] = Recipe(single) if single else None
    reads = {name: partial(_read, model, found, inputs) for name, found in others.items()}
    writes = {name: partial(_read, model, found, inputs, NEW_TOKENS) for name, found in others.items()}
    prompt, answer = _seconds(measure(reads)), _seconds(measure(writes))
    per_token = {name: max(answer[name] - prompt[name], 0.0) / (NEW_TOKENS - 1) for name in others}
    flops = {name: _flops(reads[name]) for name in ("plain", "recipe")}
    row: dict[str, Any] = {"image_tokens": count, "tokens": int(inputs["input_ids"].shape[1])}
    for name in ("plain", "recipe"):
        row |= {f"prefill_seconds_{name}": prompt[name], f"decode_seconds_{name}": per_token[name]}
        row |= {f"peak_bytes_{name}": peak_bytes(writes[name], model.device), f"prefill_flops_{name}": flops[name]}
    row["prefill_ratio"] = prompt["recipe"] / prompt["plain"]
    if "without second passes" in others:
        row["second_pass_seconds"] = prompt["recipe"] - prompt["without second passes"]
    return row


@torch.no_grad()
def _read(model: Any, recipe: Recipe | None, inputs: Inputs, new_tokens: int = 1) -> Any:
    """Read a prompt and write some tokens, by ``generate`` as users do."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    if recipe is None:
        return model.generate(**inputs, **options)
    with recipe.on(model):
        return model.generate(**inputs, **options)


def _flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _seconds(times: Mapping[str, Timing | TooSlow]) -> dict[str, float]:
    return {name: time.median if isinstance(time, Timing) else time.seconds for name, time in times.items()}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
