"""Predicted costs of a training step, against FLOPs counted in a real backward pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.model.lora import LoRA, add_lora
from sparsight.lvlm.model.recompute import recompute_layers
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.train.cost import ForwardFlops, explain, forward_flops, step_cost
from sparsight.lvlm.train.trained import LAYERS, PROJECTOR, trained_parameters
from tests.tiny_batches import labels_of
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm
from tests.tiny_rows import few

DEPTH = 6


EVERY = list(range(DEPTH))
STEPS = [*itertools.product(["llava", "qwen2_5_vl", "smolvlm"], [False, True], [True, False], [[0, 3], [4], EVERY])]


# each family, layers and projector once with recomputing and once without
@pytest.mark.parametrize(
    ("family", "checkpointing", "projector", "layers"),
    few(
        STEPS,
        ("llava", False, False, [4]),
        ("llava", True, True, [0, 3]),
        ("qwen2_5_vl", True, False, EVERY),
        ("smolvlm", False, True, [0, 3]),
    ),
)
def test_predictions_are_what_a_step_costs(
    family: str, checkpointing: bool, projector: bool, layers: list[int]
) -> None:
    model = tiny_lvlm(family)
    parts, inputs = find_parts(model), tiny_inputs(family, model)
    labels = labels_of(inputs)
    flops = forward_flops(model, parts, lambda: answer_losses(model, inputs, labels))
    model.requires_grad_(False)
    found = trained_parameters(model, parts, layers=layers, adapters=False)
    for part in (LAYERS, PROJECTOR) if projector else (LAYERS,):
        for parameter in found[part].values():
            parameter.requires_grad_(True)
    if checkpointing:
        recompute_layers(model)
        for layer in parts.layers:
            layer.training = True
    with FlopCounterMode(display=False) as counter:
        answer_losses(model, inputs, labels)[0].sum().backward()
    predicted = step_cost(flops, layers=layers, projector=projector, checkpointing=checkpointing)
    # attention kernels recompute their maps in the backward pass, and the first gradients of inputs are not needed
    assert predicted.total == pytest.approx(counter.get_total_flops(), rel=0.08)


@pytest.mark.parametrize("projector", [True, False], ids=["projector", "no-projector"])
def test_adapters_cost_what_is_predicted_for_those_there_are_and_for_all(projector: bool) -> None:
    def with_adapters(layers: list[int]) -> tuple[ForwardFlops, int]:
        model = tiny_lvlm("llava")
        parts, inputs = find_parts(model), tiny_inputs("llava", model)
        add_lora(model, parts, layers, LoRA(rank=8, alpha=8, dropout=0.0))
        flops = forward_flops(model, parts, lambda: answer_losses(model, inputs, labels_of(inputs)))
        model.requires_grad_(False)
        found = trained_parameters(model, parts, layers=layers, adapters=True)
        for part in (LAYERS, PROJECTOR) if projector else (LAYERS,):
            for parameter in found[part].values():
                parameter.requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            answer_losses(model, inputs, labels_of(inputs))[0].sum().backward()
        return flops, counter.get_total_flops()

    few, counted = with_adapters([0, 3])
    _, counted_all = with_adapters(EVERY)
    chosen = step_cost(few, layers=[0, 3], projector=projector, adapters=True)
    everything = step_cost(few, layers=range(DEPTH), projector=projector, adapters=True)
    assert chosen.total == pytest.approx(counted, rel=0.08)
    assert chosen.total / everything.total == pytest.approx(counted / counted_all, abs=0.02)
    assert counted / counted_all < 0.9


def test_the_reason_is_given() -> None:
    model = tiny_lvlm("llava")
    parts, inputs = find_parts(model), tiny_inputs("llava", model)
    flops = forward_flops(model, parts, lambda: answer_losses(model, inputs, labels_of(inputs)))
    everything = step_cost(flops, layers=range(DEPTH), projector=True)
    for projector, reason in ((True, "pass through every layer"), (False, "nothing is trained below layer 3")):
        chosen = step_cost(flops, layers=[3, 5], projector=projector)
        assert reason in explain(chosen, everything, projector=projector, lowest=3)
    assert torch.tensor(chosen.total) < everything.total
