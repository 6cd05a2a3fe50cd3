"""The model as it was before layers left, as a teacher of the one that heals.

Shape legend: B batch, T tokens, C channels, N answer tokens of the batch, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError
from sparsight.common.hashes import state_hash
from sparsight.common.plain import setting
from sparsight.common.quantised.weights import is_coded
from sparsight.common.training.processes import process_count, summed
from sparsight.common.training.sharding import whole
from sparsight.lvlm.model.answer_losses import answers
from sparsight.lvlm.model.bypass import leaving
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.model.provenance import first_depth, layers_of_first, read_provenance
from sparsight.lvlm.model.tower import find_parts, name_parts, named_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnprunedModel:
    """A frozen model beside the one that heals; checkpoints hold nothing of it but ``taken``.

    Args:
        model: It, in no other's use.
        student: The one that heals.
        places: Which of its layers each layer of the other was; the same number if not given.

    Attributes:
        shared_tower: Its vision tower, if that reads every image as the one that heals; none otherwise.
        taken: Weights that it took over from the one that heals; none if it has those that it was made with.
    """

    def __init__(self, model: PreTrainedModel, student: PreTrainedModel, places: Sequence[int] | None = None) -> None:
        self.model: Any = model.requires_grad_(False).eval()
        self._layers = find_parts(model).layers
        self.depth = len(self._layers)
        self._places = range(len(find_parts(student).layers)) if places is None else places
        self.shared_tower = _same_tower(model, student)
        self.taken: dict[str, Tensor] | None = None

    def take(self, weights: dict[str, Tensor]) -> None:
        """Take over what was tuned before the first layer left."""
        self.taken = weights
        for name, value in weights.items():
            self.model.get_parameter(name).data.copy_(value)

    def compared(
        self,
        inputs: Mapping[str, Any],
        labels_BT: Tensor,
        *,
        hidden: Mapping[int, Tensor],
        last: bool,
        logits_NV: Tensor | None,
    ) -> Comparison:
        """Compare this model with the healing one on a batch, whose gradients flow.

        Args:
            inputs: Arguments of the forward pass.
            labels_BT: Token ids, -100 where there is no answer.
            hidden: Hidden states (B, T, C) that layers of the healing model return, by their numbers.
            last: Whether the last layer's are compared with those of this model's last, whatever it was.
            logits_NV: What the healing model gives at answers; none leaves them out.
        """
        final = max(hidden, default=-1)
        twins = {number: self._layers[self._places[number]] for number in hidden}
        if last:
            twins[final] = self._layers[-1]
        device = labels_BT.device
        if self.model.device != device:
            self.model.to(device)
        with torch.no_grad(), ExitStack() as stack:
            found = {number: stack.enter_context(outputs_of(layer)) for number, layer in twins.items()}
            if logits_NV is None:
                wanted_NV = None
                self.model.model(**{**inputs, "use_cache": False})
            else:
                _, wanted_NV, _ = answers(self.model, inputs, labels_BT)
        mask_BT = inputs.get("attention_mask")
        mask_BT = torch.ones(labels_BT.shape, device=device) if mask_BT is None else mask_BT
        differences = {
            number: relative_difference(got_BTC, found[number][-1], mask_BT.bool())
            for number, got_BTC in hidden.items()
        }
        divergence = None if logits_NV is None or wanted_NV is None else answer_divergence(logits_NV, wanted_NV)
        return Comparison(differences, divergence)


@dataclass(frozen=True)
class Comparison:
    """What sets a healing model apart from the one it is compared with."""

    differences: Mapping[int, Tensor]
    """Of hidden states, by the healing model's layers: ``relative_difference``."""
    divergence: Tensor | None
    """Of what is answered: ``answer_divergence``; none if it was not asked for."""


def relative_difference(got_BTC: Tensor, wanted_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """Squared difference of hidden states over the squares of those that are wanted; padding left out."""
    wanted, got = (hidden[mask_BT].float() for hidden in (wanted_BTC, got_BTC))
    # DDP averages over processes
    return (got - wanted).square().sum() * process_count() / summed(wanted.square().sum())


def answer_divergence(got_NV: Tensor, wanted_NV: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats from wanted to given next-token distributions, mean over answer tokens."""
    got_log_NV, wanted_log_NV = (logits.float().log_softmax(-1) for logits in (got_NV, wanted_NV))
    total = F.kl_div(got_log_NV, wanted_log_NV, reduction="sum", log_target=True)
    tokens = summed(got_NV.new_full((), float(len(got_NV)), dtype=torch.float32))
    return total * process_count() / tokens


def unpruned_model(
    source: str | None, *, base: str, student: PreTrainedModel, dtype: torch.dtype, **options: Any
) -> UnprunedModel:
    """What a model is compared with while it heals.

    Args:
        source: Folder or hub id; none for a copy of the model.
        base: What the model was loaded from.
        student: The model, with as many layers as it was loaded with.
        dtype: Precision of what is never trained.
        options: Of ``sparsight.lvlm.model.load.load_lvlm``.

    Raises:
        ConfigurationError: ``source`` is not what the model was before layers left, or it must be named.
    """
    if source is not None:
        name: Any = str(dtype).removeprefix("torch.")
        model = name_parts(load_lvlm(source, dtype=name, **options), named_parts(student))
        places = _places_in(source, model, base=base, student=student)
        return UnprunedModel(model, student, places)
    depth = len(find_parts(student).layers)
    if first_depth(read_provenance(base), depth) > depth:
        raise ConfigurationError(
            f"healing: layers left model.base {base} before, by its sparsight.json: name what it was until then in "
            "healing.teacher, or the base itself"
        )
    return UnprunedModel(unpruned_copy(student, dtype), student)


def unpruned_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of a model in one precision, that of what is never trained."""
    copied = copy.deepcopy(model)
    for parameter in (each for each in copied.parameters() if not is_coded(each)):
        parameter.data = parameter.data.to(dtype)  # buffers stay, as in exports
    return copied


def tuned_weights(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    """A copy of these parameters in main memory, whole where they are split; every process must ask."""
    return {name: whole(model.get_parameter(name).detach()).to("cpu", copy=True) for name in names}


def _places_in(source: str, teacher: PreTrainedModel, *, base: str, student: PreTrainedModel) -> list[int]:
    """Which layers of one model those of another were, once it is sure that it can be what that was.

    Args:
        source: Folder or hub id of the one.
        teacher: It.
        base: Folder or hub id of the other.
        student: It, with as many layers as it was loaded with.

    Raises:
        ConfigurationError: Their kind, width or vocabulary differ; or ``sparsight.json`` in their folders says that
            they do not come from one model, or that a layer left the first and not the second.
    """
    facts = [{"class": type(model).__name__} | _sizes(model) for model in (teacher, student)]
    different = [f"{key} {facts[0][key]}, not {facts[1][key]}" for key in facts[0] if facts[0][key] != facts[1][key]]
    if different:
        raise ConfigurationError(f"healing.teacher {source} is not model.base {base} as it was: {different[0]}")
    depths = [len(find_parts(model).layers) for model in (teacher, student)]
    records = [read_provenance(folder) for folder in (source, base)]
    origins = [first_depth(record, depth) for record, depth in zip(records, depths, strict=True)]
    there, left = (layers_of_first(record, depth) for record, depth in zip(records, depths, strict=True))
    if origins[0] != origins[1] or not set(left) <= set(there):
        raise ConfigurationError(
            f"healing.teacher {source} is not model.base {base} as it was: by their sparsight.json the one has "
            f"layers {sorted(there)} of a model of {origins[0]}, the other {sorted(left)} of a model of {origins[1]}"
        )
    return [there.index(layer) for layer in left]


def _same_tower(model: PreTrainedModel, other: PreTrainedModel) -> nn.Module | None:
    """The only vision tower of a model, if the other's has the same weights and the same of its layers are read."""
    towers, others = (list(find_parts(one).vision.values()) for one in (model, other))
    layers, other_layers = (setting(one.config, "vision_feature_layer") for one in (model, other))
    if (len(towers), len(others), layers) != (1, 1, other_layers):
        return None
    return towers[0] if state_hash(towers[0].state_dict()) == state_hash(others[0].state_dict()) else None


def _sizes(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config.get_text_config(decoder=True)
    return {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size}


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Hidden states that a decoder layer returns, call by call."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: found.append(leaving(output)))
    try:
        yield found
    finally:
        hook.remove()
