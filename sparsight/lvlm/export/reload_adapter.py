"""Run as a script, in a process without this project: puts exported adapters on their base model and asks it something.

    python reload_adapter.py FOLDER QUESTION ANSWER BASE

FOLDER holds the adapters, QUESTION inputs of the model, BASE is JSON: how transformers loads the base model. ANSWER
will hold the logits in fp32.
"""

from __future__ import annotations

import json
import sys


def main(folder: str, question: str, answer: str, base: str) -> None:
    """Load, ask, and write what came out."""
    from pathlib import Path

    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(**json.loads(base)).float()
    beside = Path(folder, "projector.safetensors")  # parameters that are no module's, which peft does not keep
    if beside.exists():
        unknown = model.load_state_dict(load_file(beside), strict=False).unexpected_keys
        if unknown:
            raise SystemExit(f"{beside.name} has weights that the base model has not: {unknown[:5]}")
    adapted = PeftModel.from_pretrained(model, folder).eval()
    different = get_peft_model_state_dict(adapted).keys() ^ load_file(f"{folder}/adapter_model.safetensors").keys()
    if different:  # peft only warns of some
        raise SystemExit(f"the adapters do not fit their configuration: {sorted(different)[:5]}")
    with torch.no_grad():
        logits = adapted(**load_file(question)).logits
    save_file({"logits": logits.contiguous()}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
