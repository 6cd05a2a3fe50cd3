"""Run as a script, in a process without this project: loads an exported image-text model and asks it something.

    python reload.py FOLDER ANSWERS [recipe]

ANSWERS will hold what the folder's processor makes of a fixed image and question, the model's logits for it in fp32,
and what it generates with and without a cache. With ``recipe``, the folder's code puts a recipe on the model, under
which it generates with a cache alone.
"""

from __future__ import annotations

import sys
from typing import Any

NEW_TOKENS = 8


def example_inputs(processor: Any, side: int = 224, *, images: int = 1) -> dict[str, Any]:
    """What a processor makes of a fixed image, or several, and a question, by its chat template if it has one."""
    import numpy as np
    from PIL import Image

    ramp = np.add.outer(np.arange(side), np.arange(side)) % 256
    image = Image.fromarray(np.stack([ramp, ramp[::-1], ramp.T], -1).astype(np.uint8))
    question = "What is in this picture?"
    if processor.chat_template is None:
        text = f"{processor.image_token}\n" * images + question
    else:
        parts = [*[{"type": "image"}] * images, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return dict(processor(images=[image] * images, text=[text], return_tensors="pt"))


def answers(
    model: Any, inputs: dict[str, Any], new_tokens: int = NEW_TOKENS, *, recipe: bool = False
) -> dict[str, Any]:
    """Logits, and greedy continuations with and without a cache; with it alone under a recipe."""
    import torch

    with torch.no_grad():
        logits = model(**inputs).logits
        options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        found = {
            "logits": logits.float().contiguous(),
            "with_cache": model.generate(**inputs, **options, use_cache=True),
        }
        return found if recipe else {**found, "without_cache": model.generate(**inputs, **options, use_cache=False)}


def main(folder: str, file: str, *recipe: str) -> None:
    """Load, ask, and write what came out."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, trust_remote_code=bool(recipe)
    )
    problems = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if problems:
        raise SystemExit(f"the weights do not fit the configuration: {problems}")
    inputs = example_inputs(AutoProcessor.from_pretrained(folder))
    found = answers(model, inputs, recipe=bool(recipe))
    save_file({f"inputs.{name}": tensor.contiguous() for name, tensor in inputs.items()} | found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
