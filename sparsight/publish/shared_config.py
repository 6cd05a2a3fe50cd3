"""What of a run's configuration travels with an export: an allow-list, so that what nobody thought of stays here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from sparsight.publish.secrets import looks_secret, without_place

TOP = ("seed_everything", "matmul_precision", "trainer", "model", "data")
TRAINER = (
    "accelerator",
    "accumulate_grad_batches",
    "benchmark",
    "callbacks",
    "check_val_every_n_epoch",
    "deterministic",
    "devices",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_val_batches",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_steps",
    "num_nodes",
    "num_sanity_val_steps",
    "precision",
    "strategy",
    "sync_batchnorm",
    "use_distributed_sampler",
    "val_check_interval",
)
OURS = ("blocks", "callbacks", "datamodules", "lightning_modules", "sparsight")
KNOWN = (*OURS, "diffusers", "lightning", "pytorch_lightning", "torch", "transformers")
"""Packages whose classes' options are kept; of other classes name and numbers are, and other callbacks are left out."""


def shared_config(text: str) -> str:
    """The part of a run's configuration that says how to repeat it, without places and secrets of this machine.

    Loggers, the verb's own options, unknown callbacks, and texts in the options of unknown classes are left out; of
    addresses host and path are kept, and of paths that are not relative the last part.
    """
    content = yaml.safe_load(text)
    kept = {key: content[key] for key in TOP if key in content}
    if isinstance(kept.get("trainer"), Mapping):
        kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key in TRAINER}
        callbacks = kept["trainer"].get("callbacks")
        if callbacks is not None:
            listed = callbacks if isinstance(callbacks, list) else [callbacks]
            kept["trainer"]["callbacks"] = [c for c in listed if isinstance(c, Mapping) and _is_known(c)]
    return yaml.safe_dump(_shared(kept), sort_keys=False)


def _shared(value: Any, *, texts: bool = True) -> Any:
    """Plain data without secrets and places; without any texts if not wanted."""
    if isinstance(value, Mapping):
        texts = texts and ("class_path" not in value or _is_known(value))
        return {
            without_place(str(key)): _shared(item, texts=texts or key == "class_path")
            for key, item in value.items()
            if not looks_secret(str(key), item) and (texts or key == "class_path" or not isinstance(item, str))
        }
    if isinstance(value, (list, tuple)):
        return [_shared(item, texts=texts) for item in value if texts or not isinstance(item, str)]
    return without_place(value) if isinstance(value, str) else value


def _is_known(entry: Mapping[str, Any]) -> bool:
    path = str(entry.get("class_path", ""))
    return "." not in path or path.partition(".")[0] in KNOWN
