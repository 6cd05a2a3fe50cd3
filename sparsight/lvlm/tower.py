"""Where the parts of a transformers image-text model are: decoder layers, projector, vision tower, embeddings, head.

Layer indices mean the decoder of the text model everywhere in Sparsight, counted from 0; the vision encoder, whose
layers often have the same names, is never meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

# where a vision tower holds the projector itself (Qwen-VL and its relatives)
PROJECTORS_IN_VISION = ("merger", "deepstack_merger_list")


@dataclass(frozen=True)
class Parts:
    """The parts of an image-text model.

    Args:
        decoder: The text model: embeddings, layers and final norm.
        decoder_name: Its qualified name, e.g. ``model.language_model``.
        layers: Decoder layers.
        layers_name: Their qualified name, e.g. ``model.language_model.layers``.
        vision: Encoders of images by qualified name.
        projector: Modules, and parameters that stand alone, between vision and text, by qualified name.
        embeddings: Input token embeddings.
        head: The module that answers logits.
        image_token_id: Id of the placeholder of an image token.
    """

    decoder: nn.Module
    decoder_name: str
    layers: nn.ModuleList
    layers_name: str
    vision: dict[str, nn.Module]
    projector: dict[str, nn.Module | nn.Parameter]
    embeddings: nn.Module
    head: nn.Module
    image_token_id: int

    def layer_name(self, index: int) -> str:
        """Qualified name of a decoder layer."""
        return f"{self.layers_name}.{index}"


def find_parts(model: PreTrainedModel) -> Parts:
    """Find the parts of a model of ``AutoModelForImageTextToText``.

    Raises:
        ValueError: The model has no text decoder, vision tower, projector or image token that can be told from others;
            the message lists the candidates.
    """
    names = {module: name for name, module in model.named_modules()}
    kind = type(model).__name__
    layers = _decoder_layers(model, names)
    decoder_name = names[layers].rpartition(".")[0]
    decoder = model.get_submodule(decoder_name)
    vision = dict(_encoders(model, names, decoder_name))
    if not vision:
        raise ValueError(f"{kind} has no vision tower beside its decoder {decoder_name!r}: is it an image-text model?")
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{kind} has no output embeddings: load it with AutoModelForImageTextToText")
    image_token_id = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    if image_token_id is None:
        raise ValueError(f"the configuration of {kind} names no image_token_id")
    return Parts(
        decoder=decoder,
        decoder_name=decoder_name,
        layers=layers,
        layers_name=names[layers],
        vision=vision,
        projector=_projector(model, vision, decoder_name, head),
        embeddings=model.get_input_embeddings(),
        head=head,
        image_token_id=image_token_id,
    )


def _decoder_layers(model: PreTrainedModel, names: dict[nn.Module, str]) -> nn.ModuleList:
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    found = _lists_of(decoder.children(), depth)
    if decoder is not model and len(found) == 1:
        return found[0]
    encoders = tuple(f"{name}." for name, _ in _encoders(model, names, None))
    found = [part for part in _lists_of(model.modules(), depth) if not names[part].startswith(encoders)]
    if len(found) == 1:
        return found[0]
    candidates = {name: len(part) for part, name in names.items() if isinstance(part, nn.ModuleList)}
    raise ValueError(
        f"{len(found)} module lists of {type(model).__name__} could be the {depth} decoder layers of its text model; "
        f"all module lists, with lengths: {candidates}"
    )


def _lists_of(modules: Any, length: int) -> list[nn.ModuleList]:
    return [module for module in modules if isinstance(module, nn.ModuleList) and len(module) == length]


def _encoders(
    model: PreTrainedModel, names: dict[nn.Module, str], decoder_name: str | None
) -> Iterator[tuple[str, nn.Module]]:
    """Outermost models inside the model that neither are, hold nor belong to the text decoder."""
    text = model.config.get_text_config(decoder=True)
    decoders = [names[m] for m in names if isinstance(m, PreTrainedModel) and m is not model and m.config is text]
    decoders += [] if decoder_name is None else [decoder_name]
    taken: list[str] = []
    for module, name in names.items():
        if not isinstance(module, PreTrainedModel) or module is model:
            continue
        holds = any(d == name or d.startswith(f"{name}.") for d in decoders)
        inside = any(name.startswith(f"{outer}.") for outer in [*decoders, *taken])
        if not holds and not inside:
            taken.append(name)
            yield name, module


def _projector(
    model: PreTrainedModel, vision: dict[str, nn.Module], decoder_name: str, head: nn.Module
) -> dict[str, nn.Module | nn.Parameter]:
    """What stands beside decoder and vision tower; else what the vision tower calls its merger."""
    owner_name = decoder_name.rpartition(".")[0]
    owner = model.get_submodule(owner_name)
    found: dict[str, nn.Module | nn.Parameter] = {}
    prefix = f"{owner_name}." if owner_name else ""
    for name, parameter in owner.named_parameters(recurse=False):
        found[prefix + name] = parameter
    for name, child in owner.named_children():
        known = (
            child is head
            or prefix + name == decoder_name
            or any(v == prefix + name or v.startswith(f"{prefix}{name}.") for v in vision)
        )
        if not known and any(True for _ in child.parameters()):
            found[prefix + name] = child
    if not any(isinstance(part, nn.Module) for part in found.values()):
        for tower, module in vision.items():
            for name in PROJECTORS_IN_VISION:
                if any(True for _ in getattr(module, name, nn.Module()).parameters()):
                    found[f"{tower}.{name}"] = getattr(module, name)
    if not any(isinstance(part, nn.Module) for part in found.values()):
        children = [name for name, _ in owner.named_children()]
        inner = {tower: [name for name, _ in module.named_children()] for tower, module in vision.items()}
        raise ValueError(
            f"no projector found in {type(model).__name__}: {owner_name or 'the model'} holds {children}, and its "
            f"vision towers hold {inner}"
        )
    return found
