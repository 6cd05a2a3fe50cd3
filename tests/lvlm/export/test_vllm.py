"""A pruned export is what vLLM takes: by its own rules where it is installed, and by what these need of any folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.surgery.remove import remove_layers
from tests.tiny_lvlm import save_tiny_lvlm

REMOVED = [2, 3]


def pruned(folder: Path) -> Path:
    """A LLaVA of six layers without two of them."""
    base = save_tiny_lvlm(folder / "base", "llava")
    model = LlavaForConditionalGeneration.from_pretrained(base)
    assert len(find_parts(model).layers) == 6
    remove_layers(model, REMOVED)
    model.save_pretrained(folder / "pruned")
    AutoProcessor.from_pretrained(base).save_pretrained(folder / "pruned")
    return folder / "pruned"


def test_configuration_and_weights_count_the_same_layers(tmp_path: Path) -> None:
    """VLLM makes as many layers as the configuration says, and loads weights into them by number."""
    folder = pruned(tmp_path)
    config: Any = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    with safe_open(folder / "model.safetensors", "pt") as weights:
        numbers = {int(n) for name in weights.keys() for n in re.findall(r"language_model.*\.layers\.(\d+)\.", name)}  # noqa: SIM118
    assert text.num_hidden_layers == 4 and numbers == {0, 1, 2, 3}
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == ["LlavaForConditionalGeneration"] and "auto_map" not in written
    layer_types = text.to_dict().get("layer_types")
    assert layer_types is None or len(layer_types) == 4


@pytest.mark.slow
def test_vllm_takes_the_configuration(tmp_path: Path) -> None:
    arguments = pytest.importorskip("vllm.engine.arg_utils", reason="vLLM is not installed")
    config = arguments.EngineArgs(model=str(pruned(tmp_path)), dtype="float32").create_model_config()
    assert config.is_multimodal_model and config.hf_text_config.num_hidden_layers == 4
    assert config.architectures == ["LlavaForConditionalGeneration"]
