"""Which image-text classes of the installed transformers are served: parts found, trained, adapted, cut and exported.

    python -m benchmarks.lvlm_classes                 # all, some four minutes of one core
    python -m benchmarks.lvlm_classes llava qwen3_vl  # some
    python -m benchmarks.lvlm_classes --write         # and into docs/lvlm_classes.md

Every class is built from its own configuration, at its full size, on the meta device: no weights, no download. A class
is served if its parts are found, its layers and projector can be tuned, adapters can stand on its layers and would load
on the base model, and the model that an export would describe is the one that was tuned. Ends with 1 if a class is
neither served nor refused with a reason of Sparsight's own.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from sparsight.common.disk.files import write_text
from sparsight.lvlm.export.rehearsal import base_shapes, check_adapters, check_rebuilds, check_removal, skeleton
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.model.tower import IMAGE_TOKEN, Parts, find_parts
from sparsight.lvlm.model.unserved import refusal
from sparsight.lvlm.surgery.remove import check_removable
from sparsight.lvlm.train.trained import LAYERS, PROJECTOR, make_trainable

PAGE = Path("docs/lvlm_classes.md")
PLACEHOLDER = 3  # of an image, where a configuration leaves its token to the tokenizer
ROPE = {"rope_type": "default", "rope_theta": 1e4}
# what default configurations leave to the checkpoints
LEFT_OUT: dict[str, dict[str, Any]] = {
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model"}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", *["sparse"] * 31]}},
    "gemma4": {"vision_config": {"model_type": "gemma4_vision"}},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [], "downsample_rate": "4/8"},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "perception_lm": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_lang_large_patch14_448",
            "model_args": {"embed_dim": 64, "depth": 2, "img_size": [28, 28]},
        }
    },
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 8,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 256,
            "indexer_budget": 64,
            "indexer_compress_ratio": 8,
            "eos_token_id": PLACEHOLDER,
        }
    },
}


@dataclass
class Row:
    """What was found of a class.

    Args:
        name: Its model_type.
        kind: Its name.
        found: Text tower, number of layers and projector.
        steps: ``yes`` or why not, by step.
        refused: Why it is not served.
        broken: What failed otherwise than by a refusal.
    """

    name: str
    kind: str
    found: tuple[str, str, str] = ("", "", "")
    steps: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    broken: str = ""


STEPS = ("tune", "remove", "LoRA", "export")


def row_of(name: str) -> Row:
    """Try everything with one class."""
    row = Row(name, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])
    try:
        config = _config(name)
        row.refused = refusal(config) or ""
        if row.refused:
            return row
        model = _built(config)
        parts = find_parts(model)
    except Exception as error:
        row.broken = _told(error)
        return row
    row.found = (parts.decoder_name, str(len(parts.layers)), ", ".join(parts.projector))
    tries: dict[str, Callable[[PreTrainedModel, Parts], str]] = {
        "tune": _tune,
        "remove": _remove,
        "LoRA": _adapt,
        "export": _export,
    }
    for step, try_it in tries.items():
        try:
            row.steps[step] = try_it(model, parts)
        except Exception as error:
            row.broken = row.broken or f"{step}: {_told(error)}"
    return row


def _config(name: str) -> Any:
    config = CONFIG_MAPPING[name](**LEFT_OUT.get(name, {}))
    for option in IMAGE_TOKEN:
        if getattr(config, option, 0) is None:
            setattr(config, option, PLACEHOLDER)
    return config


def _built(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _chosen(parts: Parts) -> list[int]:
    return sorted({0, len(parts.layers) // 2, len(parts.layers) - 1})


def _tune(model: PreTrainedModel, parts: Parts) -> str:
    trained = make_trainable(model, parts, layers=_chosen(parts), lora=None, wanted=[LAYERS, PROJECTOR])
    sizes = sum(1 for index in _chosen(parts) for _ in parts.layers[index].parameters())
    if len(trained[LAYERS]) != sizes or not trained[PROJECTOR]:
        raise RuntimeError(f"{len(trained[LAYERS])} of {sizes} parameters, {len(trained[PROJECTOR])} of the projector")
    return "yes"


def _remove(model: PreTrainedModel, parts: Parts) -> str:
    depth = len(parts.layers)
    for layer in [*range(depth - 2, -1, -1), depth - 1]:
        try:
            check_removable(model, [layer], depth=depth)
        except ValueError as error:
            reason = str(error)
            continue
        check_removal(skeleton(model), layer)
        return "yes"
    told = reason.partition("cannot lose layers: ")[2] or reason
    return re.sub(r"\((\w+): .*\)$", r"(`\1`)", told)  # the option, without its value


def _adapt(model: PreTrainedModel, parts: Parts) -> str:
    other = skeleton(model)
    found = find_parts(other)
    trained = make_trainable(other, found, layers=_chosen(found), lora=LoRA(rank=2), wanted=[LAYERS, PROJECTOR])
    check_adapters(SimpleNamespace(model=other, parts=found, trained=trained))
    return "yes"


def _export(model: PreTrainedModel, parts: Parts) -> str:
    check_rebuilds(skeleton(model), base_shapes(model))
    return "yes"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = ("model_type", "class", "text tower", "layers", "projector", *STEPS)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        why = row.refused or row.broken
        cells = [f"not served: {why}", *[""] * 6] if why else [*row.found, *(row.steps[step] for step in STEPS)]
        lines.append("| " + " | ".join(cell or "-" for cell in (f"`{row.name}`", row.kind, *cells)) + " |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    served = sum(1 for row in rows if not row.refused and not row.broken)
    return (
        "# Image-text classes\n\n"
        f"The {len(rows)} image-text classes of transformers {version('transformers')}, by "
        "`python -m benchmarks.lvlm_classes --write`: each is built from its own configuration without weights, its "
        f"parts are found, and what a run does at its end is tried. {served} are served, the others are refused with "
        "the reason that stands here. Where a model's parts are not found, or not those that you mean, name them:\n\n"
        "```yaml\nmodel:\n  init_args:\n    parts:\n      decoder: model.language_model\n"
        "      vision: [model.vision_tower]\n      projector: [model.multi_modal_projector]\n```\n\n"
        f"{table(rows)}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lvlm_classes", description=__doc__)
    parser.add_argument("names", nargs="*", help="model_types; all if not given")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
    if unknown or (options.write and options.names):
        parser.error(f"no image-text classes: {unknown}" if unknown else "--write is for all classes")
    warnings.filterwarnings("ignore")
    rows = [row_of(name) for name in options.names or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]
    print(table(rows))
    broken = [row for row in rows if row.broken]
    refused = sum(1 for row in rows if row.refused)
    served = len(rows) - refused - len(broken)
    print(f"\n{len(rows)} classes: {served} served, {refused} refused, {len(broken)} neither")
    if broken:
        sys.exit(1)
    if options.write:
        write_text(PAGE, page(rows))


if __name__ == "__main__":
    main()
