"""Parameter change against sums over weights by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsight.lvlm.model.lora import LoRA, add_lora, merge_lora
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import ParameterChange, score_layers
from tests.tiny_batches import batch_of
from tests.tiny_lvlm import tiny_lvlm

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def moved(model: Any) -> Any:
    """A copy whose layers 1 and 4 were tuned, and what must not count in another."""
    tuned = copy.deepcopy(model)
    layers = find_parts(tuned).layers
    with torch.no_grad():
        for index, size in ((1, 0.5), (4, 2.0)):
            for weight in layers[index].parameters():
                weight.add_(size * torch.randn_like(weight))
        layers[2].input_layernorm.weight.add_(1)
    return tuned


def change(base: nn.Module, tuned: nn.Module) -> float:
    pairs = [(base.get_submodule(name).weight, tuned.get_submodule(name).weight) for name in PROJECTIONS]
    return sum(float(((b - a).pow(2).sum() / a.pow(2).sum()).detach() ** 0.5) for a, b in pairs)


def values_of(model: Any, base: Path) -> list[float | None]:
    return score_layers(model, [batch_of("llava", model)], [ParameterChange(str(base))]).values["parameter_change"]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_changes_are_relative_norms_summed_over_linear_weights(family: str, tmp_path: Path) -> None:
    model = tiny_lvlm(family)
    model.save_pretrained(tmp_path)
    tuned = moved(model)
    values = score_layers(tuned, [batch_of(family, tuned)], [ParameterChange(str(tmp_path))]).values["parameter_change"]
    expected = [change(a, b) for a, b in zip(find_parts(model).layers, find_parts(tuned).layers, strict=True)]
    assert values == pytest.approx(expected, rel=1e-5)
    assert [number == 0 for number in values] == [True, False, True, True, False, True]


def test_the_text_model_alone_may_be_the_base(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = tiny_lvlm("llava")
    text = LlamaForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.save_pretrained(tmp_path / "text")
    model.save_pretrained(tmp_path / "whole")
    tuned = moved(model)
    assert values_of(tuned, tmp_path / "text") == values_of(tuned, tmp_path / "whole")


def test_merged_adapters_count_and_others_are_refused(tmp_path: Path) -> None:
    model = tiny_lvlm("llava")
    model.save_pretrained(tmp_path)
    add_lora(model, find_parts(model), [3], LoRA(rank=2, alpha=4.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    with pytest.raises(ValueError, match=r"(?s)layer 3 of the base .* has other linear weights: .*must be merged"):
        values_of(model, tmp_path)
    merge_lora(model)
    values = values_of(model, tmp_path)
    assert [number == 0 for number in values] == [layer != 3 for layer in range(6)]


def test_fused_projections_are_linear_layers_like_others(tmp_path: Path) -> None:
    """Phi-3 has one weight for queries, keys and values, and one for gate and up."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from tests.tiny_families import CLIP, TEXT
    from tests.tiny_tokens import IMAGE

    text = {**TEXT, "model_type": "phi3"}
    config = LlavaConfig(text_config=text, vision_config=dict(CLIP), image_token_index=IMAGE)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        fused = find_parts(model).layers[2].self_attn.qkv_proj.weight
        before = fused.clone()
        fused.mul_(1.5)
    assert before.shape[0] == 4 * 8 + 2 * 2 * 8
    assert values_of(model, tmp_path) == pytest.approx([0, 0, 0.5, 0, 0, 0])


def test_a_base_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = tiny_lvlm("llava")
    tiny_lvlm("llava", num_hidden_layers=4).save_pretrained(tmp_path / "short")
    tiny_lvlm("llava", intermediate_size=40).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="has 4 layers, the model 6"):
        values_of(model, tmp_path / "short")
    with pytest.raises(ValueError, match=r"layer 0 of the base .* has other linear weights"):
        values_of(model, tmp_path / "narrow")
    with pytest.raises(FileNotFoundError):
        values_of(model, tmp_path / "nowhere")
    with torch.no_grad():
        find_parts(model).layers[1].mlp.up_proj.weight.zero_()
    model.save_pretrained(tmp_path / "zero")
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight in layer 1 of the base .* is zero"):
        values_of(model, tmp_path / "zero")
