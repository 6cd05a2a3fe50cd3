"""Adapters reach what a layer is made of, experts too, and nothing else; what they miss is said or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from sparsight.lvlm.model.lora import LoRA, add_lora, describe, is_adapter, merge_lora
from sparsight.lvlm.model.tower import find_parts
from tests.tiny_families import QWEN_VISION, SIDE, TEXT
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tokens import IMAGE, VIDEO, VISION_END, VISION_START

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}


def glm4v_moe() -> Any:
    """GLM-4.5V: a dense first layer, then experts beside a shared one whose weights have names that peft converts."""
    torch.manual_seed(0)
    text = TEXT | EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    config = AutoConfig.for_model(
        "glm4v_moe",
        text_config=text | {"n_group": 1, "topk_group": 1, "rope_parameters": rope},
        vision_config=QWEN_VISION | {"image_size": SIDE},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
    )
    return AutoModelForImageTextToText.from_config(config).eval()


MODELS = {"qwen3_vl_moe": lambda: tiny_lvlm("qwen3_vl_moe"), "glm4v_moe": glm4v_moe}


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("family", MODELS)
def test_experts_get_adapters_that_merge_into_them(family: str) -> None:
    model = MODELS[family]()
    parts, names, ids = find_parts(model), names_of(model), torch.randint(10, 300, (2, 9))
    plain = model(input_ids=ids).logits
    reached = add_lora(model, parts, [0, 1], LoRA(rank=2, alpha=4, dropout=0.5))
    assert min(reach.share for reach in reached.values()) > 0.95
    adapters = [name for name in names_of(model) if is_adapter(name)]
    assert all(name.startswith((f"{parts.layer_name(0)}.", f"{parts.layer_name(1)}.")) for name in adapters)
    # both stacks of the experts, two factors each
    assert len([name for name in adapters if f"{parts.layer_name(1)}.mlp.experts." in name]) == 4
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, plain)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.3)
    adapted = model(input_ids=ids).logits
    assert (adapted - plain).abs().max() > 1e-2
    merge_lora(model)
    assert names_of(model) == names
    torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-3, atol=1e-4)


def test_dropout_stays_on_linear_layers_where_experts_have_none() -> None:
    model = tiny_lvlm("qwen3_vl_moe")
    add_lora(model, find_parts(model), [1], LoRA(rank=2, dropout=0.5))
    dropped = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p == 0.5}
    assert {name.split(".")[5] for name in dropped} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_experts_alone_can_be_the_targets() -> None:
    model = tiny_lvlm("qwen3_vl_moe")
    reached = add_lora(model, find_parts(model), [1], LoRA(rank=2, targets=["down_proj"]))
    assert {name.split(".lora_")[0] for name in names_of(model) if is_adapter(name)} == {
        "model.language_model.layers.1.mlp.experts"
    }
    assert "not mlp.experts.gate_up_proj 43.5%" in describe(reached)


class OtherExperts(nn.Module):
    """Experts in a form that adapters do not know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2, 32, 64))


def test_adapters_that_miss_most_of_a_layer_are_refused_with_what_they_miss() -> None:
    def odd() -> Any:
        model = tiny_lvlm("llava")
        find_parts(model).layers[1].mlp.experts = OtherExperts()
        return model

    model = odd()
    with pytest.raises(ValueError, match=r"reach 31\.\d% of the weights of layer 1,.*mlp\.experts\.weight 6\d"):
        add_lora(model, find_parts(model), [1], LoRA(rank=2))
    assert not [name for name in names_of(model) if is_adapter(name)]
    reached = add_lora(model, find_parts(model), [1], LoRA(rank=2, least_share=0.3))
    assert "adapters reach 31." in describe(reached) and "not mlp.experts.weight 6" in describe(reached)
    model = odd()
    assert add_lora(model, find_parts(model), [1], LoRA(rank=2, targets=["q_proj"]))[1].share < 0.1
