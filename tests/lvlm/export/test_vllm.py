"""A pruned export is what vLLM takes: by its own rules where it is installed, and by what these need of any folder.

vLLM 0.33.0 (read, and asked for the configurations of every family below) makes ``num_hidden_layers`` layers, looks up
what each is in lists of the text configuration by its number, and loads weights into it by that number too.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoConfig

from sparsight.lvlm.surgery.remove import LAYER_COUNTS, LAYER_ENTRIES, LAYER_NUMBERS, remove_layers
from tests.tiny_families import FAMILIES
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_rows import few

REMOVED = [3, 4]  # behind the layers to which Qwen3-VL adds image features
KEPT = [0, 1, 2, 5]
DEPTH = 6
WINDOWS = {"use_sliding_window": True, "sliding_window": 8}
# text models with more to say about their layers than the families' own
SAID = {
    "windows everywhere": ("llava_qwen2", WINDOWS | {"max_window_layers": 0}),
    "windows nowhere": ("llava_qwen2", WINDOWS | {"max_window_layers": DEPTH}),
    "layers without positions": ("llava", {"model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1, 1, 0]}),
    "dense layers among experts": ("qwen3_vl_moe", {"mlp_only_layers": [0, 3, 5]}),
}
ROWS = {name: (name, {}) for name in FAMILIES} | SAID
UNKNOWN = ("fast_vlm", "perception_lm")  # to vLLM: its backend for models of transformers wants their whole processors


def pruned(row: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two of six layers taken out and written; the text configuration before, and the whole one as it is read again."""
    family, options = ROWS[row]
    model = tiny_lvlm(family, **options)
    before = model.config.get_text_config(decoder=True).to_dict()
    remove_layers(model, REMOVED)
    model.save_pretrained(folder)
    return before, json.loads((folder / "config.json").read_text())


def parameters(folder: Path) -> dict[int, dict[str, list[int]]]:
    """Names and shapes of the weights of every decoder layer of a file."""
    found: dict[int, dict[str, list[int]]] = defaultdict(dict)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            match = re.fullmatch(r"(?!.*vis).*\blayers\.(\d+)\.(.*)", name)
            if match:
                found[int(match[1])][match[2]] = weights.get_slice(name).get_shape()
    return found


def amiss(text: Any, before: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM would stumble over in a text configuration of ``KEPT`` layers."""
    count = text.num_hidden_layers
    if count != len(KEPT):
        yield f"{count} layers"
    said = text.to_dict()
    for name in LAYER_ENTRIES:
        entries, now = before.get(name), said.get(name)
        if isinstance(entries, list) and len(entries) == DEPTH and now != [entries[old] for old in KEPT]:
            yield f"{name}: {entries} became {now}"
    for name in LAYER_NUMBERS:
        if before.get(name) and said[name] != [KEPT.index(old) for old in before[name] if old in KEPT]:
            yield f"{name}: {before[name]} became {said[name]}"
    for name in LAYER_COUNTS:
        if isinstance(before.get(name), int) and said[name] != sum(old < before[name] for old in KEPT):
            yield f"{name}: {before[name]} became {said[name]}"
    if text.model_type == "qwen2" and len(set(text.layer_types)) > 1 and text.max_window_layers != count:
        yield "Qwen2 with windows in some layers, which vLLM takes from nobody"
    for name in ("rope_parameters", "sliding_window", "head_dim", "num_key_value_heads"):
        if said.get(name) != before.get(name):
            yield f"{name}: {before.get(name)} became {said.get(name)}"


@pytest.mark.parametrize("row", few(ROWS, "gemma3", "lfm2_vl", "layers without positions"))
def test_configuration_and_weights_tell_of_the_same_layers(row: str, tmp_path: Path) -> None:
    family, options = ROWS[row]
    whole = tiny_lvlm(family, **options)
    whole.save_pretrained(tmp_path / "whole")
    before, written = pruned(row, tmp_path / "pruned")
    config: Any = AutoConfig.from_pretrained(tmp_path / "pruned")  # transformers' own validation
    assert list(amiss(config.get_text_config(decoder=True), before)) == []
    layers = parameters(tmp_path / "whole")
    assert sorted(layers) == list(range(DEPTH)) and all(layers.values())
    assert parameters(tmp_path / "pruned") == {new: layers[old] for new, old in enumerate(KEPT)}
    assert written["architectures"] == [type(whole).__name__] and "auto_map" not in written
    levels = written["vision_config"].get("deepstack_visual_indexes") or []  # one for each of the first layers
    assert len(levels) <= min(REMOVED) and levels == whole.config.to_dict()["vision_config"].get(
        "deepstack_visual_indexes", []
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in UNKNOWN])
def test_vllm_takes_the_configuration(row: str, tmp_path: Path) -> None:
    models = pytest.importorskip("vllm.config.model", reason="vLLM is not installed")
    before, written = pruned(row, tmp_path)
    config = models.ModelConfig(model=str(tmp_path), dtype="float32", skip_tokenizer_init=True)
    assert config.is_multimodal_model and [config.architecture] == config.architectures == written["architectures"]
    assert config.model_arch_config.total_num_hidden_layers == len(KEPT)
    assert list(amiss(config.hf_text_config, before)) == []
