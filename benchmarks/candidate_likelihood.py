"""Likelihoods of candidate answers: one pass over image and question for all of them, against one for each.

    python -m benchmarks.candidate_likelihood --output runs/candidate_likelihood

A LLaVA with SmolLM2-135M's text dimensions, random weights and 576 image tokens weighs 4 candidates of each question.
Both ways run on the same inputs in turn; medians of processor time are compared, with what FLOPs predict. The unshared
way is the strongest that stays unshared: all candidates as one batch of full sequences, logits of candidates alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text
from sparsight.lvlm.answer.likelihood import candidate_log_likelihoods
from sparsight.lvlm.model.answer_losses import forward

IMAGE_TOKEN, VOCABULARY = 5, 49152
SIDE, PATCH = 336, 14  # pixels
QUESTION, CANDIDATES, LENGTH = 24, 4, 4  # tokens of the question, candidates, tokens of each
MOST_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.5}  # nats over all tokens of a candidate; ways further apart differ


def make_model(device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """SmolLM2-135M's and CLIP-B's shapes (12 layers at half the width), with random weights."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    vision = CLIPVisionConfig(
        hidden_size=384, intermediate_size=1536, num_attention_heads=6, image_size=SIDE, patch_size=PATCH
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN, vision_feature_select_strategy="default"
    )
    return LlavaForConditionalGeneration(config).to(device, dtype).eval()


def make_inputs(batch: int, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Any], list[list[list[int]]]]:
    """Questions with an image each, and candidates."""
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(10, VOCABULARY, shape, generator=generator)

    images = torch.full((batch, (SIDE // PATCH) ** 2), IMAGE_TOKEN)
    ids = torch.cat([tokens(batch, 1), images, tokens(batch, QUESTION)], 1).to(device)
    pixels = torch.randn(batch, 3, SIDE, SIDE, generator=generator).to(device, dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return inputs, tokens(batch, CANDIDATES, LENGTH).tolist()


@torch.no_grad()
def unshared(model: Any, inputs: dict[str, Any], candidates: list[list[list[int]]]) -> list[list[float]]:
    """Every candidate behind its own copy of image and question."""
    found = []
    for row, options in enumerate(candidates):
        own = {name: value[row : row + 1].repeat_interleave(len(options), 0) for name, value in inputs.items()}
        ids_RL = torch.tensor(options, device=own["input_ids"].device)
        own["input_ids"] = torch.cat([own["input_ids"], ids_RL], 1)
        own["attention_mask"] = torch.ones_like(own["input_ids"])
        wanted = torch.zeros_like(own["input_ids"], dtype=torch.bool)
        wanted[:, -LENGTH - 1 : -1] = True
        logits = forward(model, wanted, use_cache=False, **own).logits[0].float()
        losses = F.cross_entropy(logits, ids_RL.flatten(), reduction="none")
        found.append((-losses.view(len(options), LENGTH).sum(1)).tolist())
    return found


def measured(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the processor, or of the GPU's wall clock."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def main() -> None:
    """Measure, and write and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="questions")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("runs/candidate_likelihood"))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = make_model(device, dtype)
    inputs, candidates = make_inputs(arguments.batch, device, dtype)
    ways: dict[str, Callable[[], list[list[float]]]] = {
        "shared": lambda: candidate_log_likelihoods(model, inputs, candidates),
        "unshared": lambda: unshared(model, inputs, candidates),
    }
    gap = float((torch.tensor(ways["shared"]()) - torch.tensor(ways["unshared"]())).abs().max())
    if gap > MOST_GAP[dtype]:
        raise SystemExit(f"the two ways differ by {gap:.1e} nats, more than {MOST_GAP[dtype]:.0e}: nothing to time")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, work in ways.items():
            seconds[name].append(measured(work, device))
    ratios = [u / s for u, s in zip(seconds["unshared"], seconds["shared"], strict=True)]
    prompt = inputs["input_ids"].shape[1]
    result = {
        "environment": environment(device),
        "prompt_tokens": prompt,
        "candidates": CANDIDATES,
        "tokens": LENGTH,
        "batch": arguments.batch,
        "dtype": str(dtype),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_of_tokens": CANDIDATES * (prompt + LENGTH) / (prompt + CANDIDATES * (LENGTH - 1)),
        "largest_gap_nats": gap,
    }
    write_text(arguments.output / "candidate_likelihood.json", json_text(result))
    print(
        f"{CANDIDATES} candidates of {LENGTH} tokens behind {prompt}: sharing is {result['ratio']:.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f}; tokens alone say {result['ratio_of_tokens']:.2f}), largest "
        f"difference {gap:.1e} nats"
    )


if __name__ == "__main__":
    main()
