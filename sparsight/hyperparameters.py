"""What a run may change against the checkpoint it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import torch

from sparsight.common.errors import ConfigurationError

FLAG_WINS = (
    "attn_implementation",
    "base",
    "compile",
    "evaluation",
    "gradient_checkpointing",
    "guidance_scale",
    "max_skipped_steps",
    "pretrained",
    "revision",
    "sample_steps",
    "teacher",
    "trust_remote_code",
    "variant",
    "vision_cache_gib",
)
"""Options of a module whose value on the command line or in YAML beats the checkpoint's; others must be equal."""


def check_against_checkpoint(config: Mapping[str, Any], path: str) -> None:
    """Compare the configured module with the one that a checkpoint was saved from.

    Args:
        config: Configuration of the verb, with ``model.class_path`` and ``model.init_args``.
        path: Checkpoint file.

    Raises:
        ConfigurationError: The module's class or an option outside :data:`FLAG_WINS` differs.
    """
    saved = torch.load(path, weights_only=True, map_location="cpu").get("hyper_parameters", {})
    model = config["model"]
    current = flatten(model.get("init_args", {}))
    saved_class = saved.get("_class_path", model["class_path"])
    if saved_class.rpartition(".")[2] != model["class_path"].rpartition(".")[2]:
        raise ConfigurationError(
            f"{path} was saved from {saved_class}, but the configuration asks for {model['class_path']}"
        )
    known = flatten({key: value for key, value in saved.items() if not key.startswith("_")})
    different = [
        f"  {key}: {known[key]!r} in the checkpoint, {current[key]!r} in the configuration"
        for key in sorted(known.keys() & current.keys())
        if known[key] != current[key] and not any(fnmatch(key.split(".")[0], safe) for safe in FLAG_WINS)
    ]
    if different:
        raise ConfigurationError(
            f"the configuration differs from {path} in what cannot change after training has begun:\n"
            + "\n".join(different)
            + f"\nMake them equal; only {', '.join(FLAG_WINS)} may differ."
        )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings, namespaces and lists as ``{"a.b.0": value}``."""
    if hasattr(tree, "as_dict"):
        tree = tree.as_dict()
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
