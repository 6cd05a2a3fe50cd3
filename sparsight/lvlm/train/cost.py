"""What tuning some layers saves of a training step, in FLOPs, and why it is not more.

Backward passes cost by kind: a linear layer passes gradients on for as much as its forward pass, and makes weight
gradients for as much again; attention, which has two matrix products of activations, passes them on for twice as much.
Below the lowest trained parameter there is no backward pass at all. Recomputed layers cost another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsight.lvlm.model.lora import is_adapter
from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEAR = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution}


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass: in products with weights, and in attention."""

    linear: float
    attention: float

    @property
    def forward(self) -> float:
        """Both."""
        return self.linear + self.attention


@dataclass(frozen=True)
class StepCost:
    """FLOPs of one training step.

    Args:
        frozen: Forward pass of vision tower and of what else is never passed through backwards.
        forward: Forward pass of projector, decoder layers and head.
        recomputed: What gradient checkpointing repeats.
        passed_on: Gradients of activations.
        weights: Gradients of trained weights.
    """

    frozen: float
    forward: float
    recomputed: float
    passed_on: float
    weights: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.frozen + self.forward + self.recomputed + self.passed_on + self.weights


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass by part.

    Args:
        projector: Of the projector.
        layers: Of every decoder layer.
        adapters: What low-rank adapters are of that.
        head: Of the head.
        rest: Of all else.
    """

    projector: Flops
    layers: tuple[Flops, ...]
    adapters: tuple[float, ...]
    head: Flops
    rest: float


def forward_flops(model: PreTrainedModel, parts: Parts, run: Callable[[], Any]) -> ForwardFlops:
    """Count a forward pass.

    Args:
        model: The model.
        parts: Its parts.
        run: Calls the model once, on a batch like those of training.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    counts = counter.get_flop_counts()
    root = type(model).__name__

    def of(name: str) -> Flops:
        by_op = counts.get(f"{root}.{name}", {})
        linear = sum(value for op, value in by_op.items() if op in LINEAR)
        return Flops(linear, sum(by_op.values()) - linear)

    names = {module: name for name, module in model.named_modules()}
    layers = tuple(of(parts.layer_name(index)) for index in range(len(parts.layers)))
    adapters = [
        sum(of(f"{parts.layer_name(index)}.{name}").linear for name, _ in layer.named_modules() if is_adapter(name))
        for index, layer in enumerate(parts.layers)
    ]
    projector = [of(name) for name in parts.projector]
    between = Flops(sum(f.linear for f in projector), sum(f.attention for f in projector))
    head = of(names[parts.head])
    total = sum(counts["Global"].values())
    return ForwardFlops(
        between, layers, tuple(adapters), head, total - sum(f.forward for f in [between, head, *layers])
    )


def step_cost(
    flops: ForwardFlops,
    *,
    layers: Collection[int],
    projector: bool,
    adapters: bool = False,
    checkpointing: bool = False,
    lowest: int | None = None,
) -> StepCost:
    """FLOPs of a training step that trains these layers, and the projector or not.

    Args:
        flops: Of the forward pass.
        layers: Trained decoder layers.
        projector: Whether the projector is trained: then gradients pass through every layer.
        adapters: Whether low-rank adapters stand in for the layers' weights; a layer that has none in ``flops`` is
            taken to have such as the others.
        checkpointing: Whether decoder layers are recomputed.
        lowest: Layer down to which gradients pass; the lowest of ``layers`` if not given.
    """
    adapter = max(flops.adapters)
    added = [adapter - flops.adapters[i] if adapters and i in layers else 0.0 for i in range(len(flops.layers))]
    found = min(layers, default=len(flops.layers)) if lowest is None else lowest
    backward = range(0 if projector else found, len(flops.layers))
    # the lowest trained layer needs no gradient of its input, but nearly all of its inside does
    passed_on = sum(flops.layers[i].linear + added[i] + 2 * flops.layers[i].attention for i in backward)
    weights = sum(adapter if adapters else flops.layers[i].linear for i in layers)
    return StepCost(
        frozen=flops.rest,
        forward=flops.projector.forward + flops.head.forward + sum(f.forward for f in flops.layers) + sum(added),
        recomputed=sum(flops.layers[i].forward + added[i] for i in backward) if checkpointing else 0.0,
        passed_on=passed_on + flops.head.linear,
        weights=weights + (flops.projector.linear if projector else 0.0),
    )


def explain(chosen: StepCost, everything: StepCost, *, projector: bool, lowest: int, cached: bool = False) -> str:
    """The predicted cost against that of training all layers, in words.

    Args:
        chosen: Of the step.
        everything: Of one that trains all layers.
        projector: Whether the projector is trained.
        lowest: Lowest trained layer.
        cached: Whether both were counted with the vision tower's outputs at hand.
    """
    named = {"frozen": "vision tower", "passed_on": "activation gradients", "weights": "weight gradients"}
    shares = {named.get(kind, kind): flops / everything.total for kind, flops in asdict(chosen).items()}
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 0.0005)
    why = (
        "the projector is trained, so activation gradients pass through every layer"
        if projector
        else f"nothing is trained below layer {lowest}, so the backward pass ends there"
    )
    backward = (chosen.passed_on + chosen.weights) / (everything.passed_on + everything.weights)
    return (
        f"predicted step, in FLOPs of training all layers: {chosen.total / everything.total:.1%} ({listed}); backward "
        f"pass alone {backward:.1%}; {why}"
        f"{'; an image that is not in the vision cache yet costs more' if cached else ''}"
    )
