"""What tuning an image-text model holds of a device's memory all the time, by parameter count: no weights are loaded.

    python -m benchmarks.lvlm_memory                                             the table of docs/lvlm.md
    python -m benchmarks.lvlm_memory --config my_run.yaml                        a config of yours, in full
    python -m benchmarks.lvlm_memory --config experiment/qwen3_vl_2b_24gb --base ./my-model

Of the model in the last two, `config.json` alone is read. Runs of SparseLayerTuning print the same at their start.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, PreTrainedConfig, Qwen3VLConfig

from lightning_modules import SparseLayerTuning
from sparsight.command.arguments import read_config
from sparsight.common.measure.memory_table import GIB, MemoryEstimate
from sparsight.common.quantised.loading import DTYPES
from sparsight.common.tables import markdown_table
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.surgery.selection import Uniform
from sparsight.lvlm.train.memory import tuning_memory
from sparsight.lvlm.train.trained import LAYERS, PROJECTOR, make_trainable
from sparsight.lvlm.train.unpruned import unpruned_copy

LLAMA = {"model_type": "llama", "vocab_size": 32064}  # Llama 2's sizes are the defaults
LLAMA_13B = {
    **LLAMA,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
LLAMA3_8B = {
    "model_type": "llama",
    "vocab_size": 128_320,  # 128 256 and <pad>, <image>, up to a multiple of 64
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN_TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
QWEN_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
}
LLAVA_7B = LlavaConfig(text_config=LLAMA, vision_config=CLIP)
BUNNY = LlavaConfig(text_config=LLAMA3_8B, vision_config=SIGLIP)
BASES: dict[str, PreTrainedConfig] = {  # sizes of the models that the recipes name
    "llava-hf/llava-1.5-7b-hf": LLAVA_7B,
    "runs/llava15_7b_region/tuned": LLAVA_7B,
    "llava-hf/llava-1.5-13b-hf": LlavaConfig(text_config=LLAMA_13B, vision_config=CLIP),
    "data/bunny/base": BUNNY,
    "runs/bunny_llama3_8b_align/tuned": BUNNY,
    "Qwen/Qwen3-VL-2B-Instruct": Qwen3VLConfig(
        text_config=QWEN_TEXT, vision_config=QWEN_VISION, tie_word_embeddings=True
    ),
}
ALL = {"layers": {"class_path": "sparsight.lvlm.surgery.selection.All"}}
ROWS: list[tuple[str, str, dict[str, Any]]] = [  # recipe, what is said of the change, the change
    ("llava15_7b_region", "", {}),
    ("llava15_7b_region", " in full (`--model.lora null`)", {"lora": None}),
    ("llava15_7b_prune", "", {}),
    ("llava15_13b_region", "", {}),
    ("bunny_llama3_8b_align", "", {}),
    ("bunny_llama3_8b_region", "", {}),
    ("qwen3_vl_2b_24gb", "", {}),
    ("qwen3_vl_2b_24gb", ", all layers", ALL),
]


def estimate(config: Mapping[str, Any], **changes: Any) -> tuple[dict[str, int], MemoryEstimate]:
    """Trained parameters by part, and bytes, of a run's configuration.

    Args:
        config: As in its YAML.
        changes: Options of the module, such as ``base``, that take the place of those of ``config``.
    """
    options = module_options({**config["model"]["init_args"], **changes})
    code = {"trust_remote_code": options.loading.trust_remote_code}
    source = {"revision": options.loading.revision, **code}
    sizes = BASES[options.base] if options.base in BASES else AutoConfig.from_pretrained(options.base, **source)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(sizes, dtype=DTYPES[options.loading.dtype], **code)
    parts = find_parts(model)
    layers = (options.layers or Uniform(ratio=0.25)).select(len(parts.layers))
    wanted = {part for stage in options.stages for part in stage.train}
    trained = make_trainable(model, parts, layers=layers, lora=options.lora, wanted=wanted)
    unpruned = unpruned_copy(model, DTYPES[options.loading.dtype]) if options.healing.hidden > 0 else None
    callbacks = {c["class_path"].rpartition(".")[2]: c for c in config.get("trainer", {}).get("callbacks") or []}
    rotation = callbacks.get("LayerRotation")
    memory = tuning_memory(
        model,
        parts,
        trained,
        options.stages,
        optimizer=options.optimizer,
        layers_at_a_time=None if rotation is None else rotation.get("init_args", {}).get("layers", 2),
        averaged="TrainableEMA" in callbacks,
        unpruned=unpruned,
    )
    return {part: sum(model.get_parameter(n).numel() for n in names) for part, names in trained.items()}, memory


def module_options(given: Mapping[str, Any]) -> Any:
    """SparseLayerTuning's options, checked and made as the command makes them, without the module."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SparseLayerTuning, "model", instantiate=False, fail_untyped=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the call's new name came with jsonargparse 4.49
        return parser.instantiate_classes(parser.parse_object({"model": dict(given)})).model


def table(rows: Sequence[tuple[str, str, dict[str, Any]]] = tuple(ROWS)) -> str:
    """Trained parameters and standing memory of recipes, as Markdown."""
    lines = []
    for name, change, options in rows:
        trained, memory = estimate(read(f"experiment/{name}"), **options)
        millions = " + ".join(f"{trained.get(part, 0) / 1e6:.1f} M" for part in (LAYERS, PROJECTOR))
        standing = f"{memory.total / GIB:.1f} GiB"
        lines.append({"": f"`{name}`{change}", "trained, layers + projector": millions, "standing": standing})
    return markdown_table(lines)


def read(config: str) -> dict[str, Any]:
    """A config by name or file."""
    return read_config(config)


def main() -> None:
    """Print the table of the docs, or a config's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="config of a SparseLayerTuning, by name or file")
    parser.add_argument("--base", help="folder or hub id in place of the config's base")
    options = parser.parse_args()
    if options.config is None:
        print(table())
    else:
        trained, memory = estimate(read(options.config), **({} if options.base is None else {"base": options.base}))
        print("\n".join(f"trained {part}: {count:,} parameters" for part, count in trained.items()))
        print(memory.text())


if __name__ == "__main__":
    main()
