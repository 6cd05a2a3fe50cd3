"""The parts of every family, and that a choice of layers touches those layers alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.model.lora import LoRA, add_lora, is_adapter, merge_lora
from sparsight.lvlm.model.tower import PartNames, find_parts, name_parts
from sparsight.lvlm.train.trained import LAYERS, PROJECTOR, trained_parameters
from tests.tiny_batches import labels_of
from tests.tiny_families import FAMILIES, TEXT
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm

CHOSEN = [0, 2]
# names in each family's own model code: vision tower, what makes its output fit for the decoder, decoder layers
LLAVA = ("model.vision_tower", ("model.multi_modal_projector",), "model.language_model.layers")
TILED = ("model.vision_tower", ("model.multi_modal_projector", "model.image_newline"), "model.language_model.layers")
IDEFICS = ("model.vision_model", ("model.connector",), "model.text_model.layers")
MERGERS = ("model.visual.merger", "model.visual.deepstack_merger_list")
NAMES = dict.fromkeys(FAMILIES, LLAVA) | {
    "llava_next": TILED,
    "llava_onevision": TILED,
    "smolvlm": IDEFICS,
    "idefics3": IDEFICS,
    "qwen2_5_vl": ("model.visual", MERGERS[:1], "model.language_model.layers"),
    "qwen3_vl": ("model.visual", MERGERS, "model.language_model.layers"),
    "qwen3_vl_moe": ("model.visual", MERGERS, "model.language_model.layers"),
    "qwen3_5": ("model.visual", MERGERS[:1], "model.language_model.layers"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_told_apart(family: str) -> None:
    model = tiny_lvlm(family)
    parts = find_parts(model)
    tower, projector, layers = NAMES[family]
    assert ([*parts.vision], set(parts.projector), parts.layers_name) == ([tower], {*projector}, layers)
    assert len(parts.layers) == TEXT["num_hidden_layers"]
    assert all(layer is model.get_submodule(parts.layer_name(i)) for i, layer in enumerate(parts.layers))
    inside_vision = {id(module) for tower in parts.vision.values() for module in tower.modules()}
    assert not any(id(layer) in inside_vision for layer in parts.layers)
    assert parts.embeddings.num_embeddings == parts.head.out_features == TEXT["vocab_size"]
    # every parameter belongs to vision, projector, decoder or head: nothing is left without a place
    named = [*parts.vision, *parts.projector, parts.decoder_name, "lm_head"]
    assert not [n for n, _ in model.named_parameters() if not any(n == p or n.startswith(f"{p}.") for p in named)]


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_of_layers_trains_those_layers_alone(family: str, adapters: bool) -> None:
    model = tiny_lvlm(family)
    parts, inputs = find_parts(model), tiny_inputs(family, model)
    if adapters:
        add_lora(model, parts, CHOSEN, LoRA(rank=2, alpha=4, dropout=0.0))
    before = copy.deepcopy(model.state_dict())
    model.requires_grad_(False)
    found = trained_parameters(model, parts, layers=CHOSEN, adapters=adapters)
    trained = found[LAYERS] | found[PROJECTOR]
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):  # the first step of an adapter moves one of its factors only
        answer_losses(model, inputs, labels_of(inputs))[0].sum().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    _, projector, decoder_layers = NAMES[family]
    layers = tuple(f"{decoder_layers}.{index}." for index in CHOSEN)
    between = tuple(f"{part}." for part in projector)
    beside = {name for name in changed if not name.startswith(layers)}
    assert beside == {name for name in before if f"{name}.".startswith(between)}
    for layer in layers:
        of_layer = {name for name in changed if name.startswith(layer)}
        wanted = {name for name in before if name.startswith(layer) and is_adapter(name) == adapters}
        assert of_layer == wanted


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_merged_adapters_answer_alike_and_are_gone(family: str) -> None:
    model = tiny_lvlm(family)
    inputs, names = tiny_inputs(family, model), [name for name, _ in model.named_parameters()]
    plain = model(**inputs).logits
    add_lora(model, find_parts(model), CHOSEN, LoRA(rank=2, alpha=4, dropout=0.0))
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.3)
    adapted = model(**inputs).logits
    merge_lora(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert (adapted - plain).abs().max() > 1e-2
    torch.testing.assert_close(model(**inputs).logits, adapted, rtol=1e-3, atol=1e-4)


def test_unknown_adapter_targets_are_refused() -> None:
    model = tiny_lvlm("llava")
    with pytest.raises(ValueError, match=r"q_project.*q_proj"):
        add_lora(model, find_parts(model), CHOSEN, LoRA(targets=["q_project"]))


def test_ambiguous_decoders_are_refused_with_the_candidates() -> None:
    model = tiny_lvlm("llava")
    decoder = model.model.language_model
    decoder.more_layers = nn.ModuleList(nn.Identity() for _ in decoder.layers)
    with pytest.raises(ValueError, match=r"2 module lists.*language_model\.layers.*more_layers"):
        find_parts(model)


def test_a_text_model_has_no_vision_tower() -> None:
    text = tiny_lvlm("llava").model.language_model
    with pytest.raises(ValueError, match="no vision tower"):
        find_parts(text)


def test_a_model_without_projector_is_refused_with_what_it_holds() -> None:
    model = tiny_lvlm("llava")
    del model.model.multi_modal_projector
    with pytest.raises(ValueError, match=r"no projector.*vision_tower"):
        find_parts(model)


def test_what_stands_beside_for_other_ends_is_no_projector() -> None:
    """Janus draws images and Gemma 3n hears, by parts beside the decoder that training on images must not touch."""
    model = tiny_lvlm("llava")
    for name in ("generation_aligner", "generation_head", "embed_audio", "vqmodel"):
        setattr(model.model, name, nn.Linear(2, 2))
    model.model.audio_tower = tiny_lvlm("llava").model.vision_tower
    parts = find_parts(model)
    assert [*parts.projector] == ["model.multi_modal_projector"] and [*parts.vision] == ["model.vision_tower"]


def test_parts_can_be_named_for_any_model_and_its_copies() -> None:
    model = tiny_lvlm("llava")
    model.model.bridge, model.model.multi_modal_projector = model.model.multi_modal_projector, None
    model.model.shift = nn.Parameter(torch.zeros(2))
    named = PartNames(
        decoder="model.language_model", projector=["model.bridge.linear_2", "model.shift"], image_token_id=5
    )
    for one in (name_parts(model, named), copy.deepcopy(model)):
        parts = find_parts(one)
        assert parts.layers_name == "model.language_model.layers" and not parts.vision and parts.image_token_id == 5
        assert parts.projector == {"model.bridge.linear_2": one.model.bridge.linear_2, "model.shift": one.model.shift}
    found = trained_parameters(model, find_parts(model), layers=[1], adapters=False)
    assert [*found[PROJECTOR]] == ["model.shift", "model.bridge.linear_2.weight", "model.bridge.linear_2.bias"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"decoder": "language_model"}, r"parts\.decoder names 'language_model'.*near are model\.language_model"),
        ({"projector": ["multi_modal_projector"]}, r"parts\.projector names.*near are model\.multi_modal_projector"),
        ({"vision": ["model.vision_towr"]}, r"parts\.vision names.*near are model\.vision_tower"),
        ({"decoder": "model.vision_tower"}, r"parts\.decoder 'model\.vision_tower' holds 0 module lists of 6 layers"),
        ({"projector": ["x"]}, r"parts\.projector names 'x'.*the model holds \['model', 'lm_head'\]"),
    ],
)
def test_a_wrong_name_of_a_part_is_refused_with_names_near_it(names: dict[str, Any], message: str) -> None:
    right = {"decoder": "model.language_model", "projector": ["model.multi_modal_projector"]}
    with pytest.raises(ValueError, match=message):
        find_parts(name_parts(tiny_lvlm("llava"), PartNames(**right | names)))


def test_models_that_are_not_served_say_why() -> None:
    model = tiny_lvlm("llava")
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration is not served: an encoder reads"):
        find_parts(model)
