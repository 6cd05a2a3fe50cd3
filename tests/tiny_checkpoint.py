"""Checkpoints stored without pickles: tensors as safetensors, all else as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def store(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write what ``torch.save`` would write as one file into a folder."""
    tensors: dict[str, torch.Tensor] = {}

    def take(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value.contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):  # keys may be numbers
            return {"items": [[key, take(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [take(item) for item in value]}
        return value

    content = take(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "rest.json").write_text(json.dumps(content) + "\n")


def stored(folder: Path) -> dict[str, Any]:
    """The checkpoint that ``store`` has written."""
    tensors = load_file(folder / "tensors.safetensors")

    def give(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "items":
            return {key: give(item) for key, item in content}
        items = [give(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    found: dict[str, Any] = give(json.loads((folder / "rest.json").read_text()))
    return found
