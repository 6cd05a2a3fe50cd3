"""The parts of every family, and that a choice of layers touches those layers alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsight.lvlm.answers import IGNORED, answer_losses
from sparsight.lvlm.lora import LoRA, add_lora, is_adapter, merge_lora
from sparsight.lvlm.tower import find_parts
from sparsight.lvlm.trained import LAYERS, PROJECTOR, trained_parameters
from tests.tiny_lvlm import FAMILIES, TEXT, tiny_inputs, tiny_lvlm

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


def labels_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last three tokens of every sample carry loss."""
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        labels[row, length - 3 : length] = inputs["input_ids"][row, length - 3 : length]
    return labels


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
