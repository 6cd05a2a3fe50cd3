"""Where the parts of a transformers image-text model are: decoder layers, projector, vision tower, embeddings, head.

Layer indices mean the decoder of the text model everywhere in Sparsight, counted from 0; the vision encoder, whose
layers often have the same names, is never meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import nn

from sparsight.common.plain import setting
from sparsight.lvlm.model.unserved import refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMED = "sparsight_part_names"  # attribute of a model, which copies of it keep
IMAGE_TOWER = re.compile(r"(.*_)?(vision|image|video)_(tower|model|encoder)|visual")  # last part of its name
# where a vision tower holds the projector itself (Qwen-VL and its relatives, Granite Docling)
PROJECTORS_IN_VISION = ("merger", "merger_list", "deepstack_merger_list", "connector", "patch_merger")
# what stands beside decoder and vision tower for other ends: drawing images, hearing, speaking
OTHER_ENDS = re.compile(r"generation|audio|speech|sound|talker|vq|action|time|state")
IMAGE_TOKEN = ("image_token_id", "image_token_index", "video_token_index")  # options of a configuration


@dataclass(frozen=True)
class PartNames:
    """Where the parts of a model are, said by its user instead of found.

    Args:
        decoder: Qualified name of the text model, e.g. ``model.language_model``.
        vision: Those of the vision towers, if there are any.
        projector: Those of the modules and parameters between vision and text.
        image_token_id: Id of the placeholder of an image token, where the configuration does not say it.
    """

    decoder: str
    projector: Sequence[str]
    vision: Sequence[str] = ()
    image_token_id: int | None = None


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
        head: The module that gives logits.
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


def name_parts(model: PreTrainedModel, named: PartNames | None) -> PreTrainedModel:
    """Let ``find_parts`` take a user's word for where the parts of a model, and of its copies, are."""
    if named is not None:
        vars(model)[_NAMED] = named
    return model


def named_parts(model: PreTrainedModel) -> PartNames | None:
    """What ``name_parts`` was told."""
    return vars(model).get(_NAMED)


def find_parts(model: PreTrainedModel) -> Parts:
    """Find the parts of a model of ``AutoModelForImageTextToText``.

    Raises:
        ValueError: The model has no text decoder, vision tower, projector or image token that can be told from others;
            the message lists the candidates. Or a name that the user gave is none.
    """
    named = named_parts(model)
    kind = type(model).__name__
    reason = refusal(model.config)
    if reason is not None and named is None:
        raise ValueError(f"{kind} is not served: {reason}")
    names = {module: name for name, module in model.named_modules()}
    layers = _decoder_layers(model, names, named)
    layers_name = names[layers]
    decoder_name = layers_name.rpartition(".")[0]
    if named is None:
        vision = dict(_encoders(model, names, decoder_name))
        if not vision:
            raise ValueError(
                f"{kind} has no vision tower beside its decoder {decoder_name!r}: is it an image-text model? If it is, "
                "name its parts in `parts`"
            )
        projector = _projector(model, vision, decoder_name)
    else:
        vision = {name: _module(model, name, "parts.vision") for name in named.vision}
        projector = {name: _part(model, name) for name in named.projector}
    return Parts(
        decoder=model.get_submodule(decoder_name),
        decoder_name=decoder_name,
        layers=layers,
        layers_name=layers_name,
        vision=vision,
        projector=projector,
        embeddings=model.get_input_embeddings(),
        head=_head(model),
        image_token_id=_image_token_id(model, named),
    )


def _image_token_id(model: PreTrainedModel, named: PartNames | None) -> int:
    said = [setting(model.config, option) for option in IMAGE_TOKEN]
    known = [None if named is None else named.image_token_id, *said]
    for number in known:
        if number is not None:
            return int(number)
    raise ValueError(
        f"the configuration of {type(model).__name__} names no image_token_id: say it in `parts.image_token_id`"
    )


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    if head is None:  # some models hold a whole text model and do not pass the question on
        heads = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "lm_head"]
        head = heads[0] if len(heads) == 1 else None
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings: load it with AutoModelForImageTextToText")
    return head


def _module(model: PreTrainedModel, name: str, where: str) -> nn.Module:
    known = dict(model.named_modules())
    if name not in known:
        raise _unknown(name, known, where, model)
    return known[name]


def _part(model: PreTrainedModel, name: str) -> nn.Module | nn.Parameter:
    known: dict[str, nn.Module | nn.Parameter] = {**dict(model.named_parameters()), **dict(model.named_modules())}
    if name not in known:
        raise _unknown(name, known, "parts.projector", model)
    return known[name]


def _unknown(name: str, known: Iterable[str], where: str, model: PreTrainedModel) -> ValueError:
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    near += [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2] and other not in near][:3]
    told = f"near are {', '.join(near)}" if near else f"the model holds {[n for n, _ in model.named_children()]}"
    return ValueError(f"{where} names {name!r}, which {type(model).__name__} has not: {told}")


def _decoder_layers(model: PreTrainedModel, names: dict[nn.Module, str], named: PartNames | None) -> nn.ModuleList:
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder() if named is None else _module(model, named.decoder, "parts.decoder")
    found = _lists_of(decoder.children(), depth)
    if (decoder is not model or named is not None) and len(found) == 1:
        return found[0]
    if named is not None:
        lists = {name: len(part) for name, part in decoder.named_modules() if isinstance(part, nn.ModuleList)}
        raise ValueError(
            f"parts.decoder {named.decoder!r} holds {len(found)} module lists of {depth} layers; all, with lengths: "
            f"{lists}"
        )
    encoders = tuple(f"{name}." for name, _ in _encoders(model, names, None))
    found = [part for part in _lists_of(model.modules(), depth) if not names[part].startswith(encoders)]
    inside = tuple(f"{name}." for name in _text_models(model, names))
    found = [part for part in found if names[part].startswith(inside)] or found
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
    """Outermost modules that are called vision towers, outside the text decoder; else other models in their place."""
    from transformers import PreTrainedModel

    decoders = _text_models(model, names) + ([] if decoder_name is None else [decoder_name])
    towers: dict[str, nn.Module] = {}
    others: dict[str, nn.Module] = {}
    for module, name in names.items():
        holds = not name or any(d == name or d.startswith(f"{name}.") for d in decoders)
        inside = any(name.startswith(f"{outer}.") for outer in [*decoders, *towers])
        if holds or inside:
            continue
        if IMAGE_TOWER.fullmatch(name.rpartition(".")[2]) and any(True for _ in module.parameters()):
            towers[name] = module
        elif isinstance(module, PreTrainedModel) and not any(name.startswith(f"{outer}.") for outer in others):
            others[name] = module
    yield from (towers or others).items()


def _text_models(model: PreTrainedModel, names: dict[nn.Module, str]) -> list[str]:
    """Names of the models inside the model that have the text configuration."""
    from transformers import PreTrainedModel

    text = model.config.get_text_config(decoder=True)
    return [names[m] for m in names if isinstance(m, PreTrainedModel) and m is not model and m.config is text]


def _projector(
    model: PreTrainedModel, vision: dict[str, nn.Module], decoder_name: str
) -> dict[str, nn.Module | nn.Parameter]:
    """What stands beside decoder and vision tower; else what the vision tower calls its merger."""
    owner_name = decoder_name.rpartition(".")[0]
    while owner_name and not any(name.startswith(f"{owner_name}.") for name in vision):
        owner_name = owner_name.rpartition(".")[0]  # a whole text model may stand around the decoder
    owner = model.get_submodule(owner_name)
    found: dict[str, nn.Module | nn.Parameter] = {}
    prefix = f"{owner_name}." if owner_name else ""
    for name, parameter in owner.named_parameters(recurse=False):
        found[prefix + name] = parameter
    for name, child in owner.named_children():
        known = child is model.get_output_embeddings() or any(
            other == prefix + name or other.startswith(f"{prefix}{name}.") for other in (decoder_name, *vision)
        )
        if not known and not OTHER_ENDS.search(name) and any(True for _ in child.parameters()):
            found[prefix + name] = child
    if not any(isinstance(part, nn.Module) for part in found.values()):
        for tower, module in vision.items():
            for name, part in module.named_children():
                if name in PROJECTORS_IN_VISION and any(True for _ in part.parameters()):
                    found[f"{tower}.{name}"] = part
    if not any(isinstance(part, nn.Module) for part in found.values()):
        children = [name for name, _ in owner.named_children()]
        inner = {tower: [name for name, _ in module.named_children()] for tower, module in vision.items()}
        raise ValueError(
            f"no projector found in {type(model).__name__}: {owner_name or 'the model'} holds {children}, and its "
            f"vision towers hold {inner}; name it in `parts`"
        )
    return found
