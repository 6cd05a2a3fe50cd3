"""Weights of methods: made for a model, or from a file that another recipe left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks.tokens.base import Edit
from blocks.tokens.weighted import Shape, Weighted
from sparsight.common.plain import setting
from sparsight.lvlm.model.tower import find_parts

FILE = "recipe.safetensors"


def weighted(methods: Iterable[Edit]) -> dict[str, Weighted]:
    """Methods with weights by their names.

    Raises:
        ValueError: Two have one name, by which files and checkpoints know their weights.
    """
    found: dict[str, Weighted] = {}
    for method in methods:
        if isinstance(method, Weighted):
            name = type(method).__name__
            if name in found:
                raise ValueError(f"{name} is there twice, and weights are known by the method's name: make one of both")
            found[name] = method
    return found


def shape_of(model: Any) -> Shape:
    """Sizes of a model's decoder."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    key_heads, channels = setting(config, "num_key_value_heads"), setting(config, "head_dim")
    inner = setting(config, "intermediate_size")
    vision = setting(setting(model.config, "vision_config"), "hidden_size")
    return Shape(
        depth=len(find_parts(model).layers),
        channels=config.hidden_size,
        heads=heads,
        key_heads=key_heads or heads,
        head_channels=channels or config.hidden_size // heads,
        inner=inner if isinstance(inner, int) else 4 * config.hidden_size,
        vision=vision if isinstance(vision, int) else 0,
    )


def fit_weights(methods: Mapping[str, Weighted], model: Any) -> None:
    """Give methods their weights for a model where they have none, on its device.

    Raises:
        ValueError: A file does not hold what a method asks for.
    """
    shape = shape_of(model) if methods else None
    for name, method in methods.items():
        assert shape is not None
        held, is_new = method.fit(shape)
        if is_new:
            held.float()
            if method.trained is not None:
                put_weights({name: method}, read_weights(method.trained), source=method.trained)
        held.to(model.device)


def state_of(methods: Mapping[str, Weighted]) -> dict[str, Tensor]:
    """All weights by name, in main memory."""
    return {
        f"{name}.{part}": tensor.detach().cpu().contiguous()
        for name, method in methods.items()
        for part, tensor in method.held.state_dict().items()
    }


def write_weights(methods: Mapping[str, Weighted], folder: Path) -> None:
    """Write ``recipe.safetensors``, if any method has weights."""
    from safetensors.torch import save_file

    if methods:
        save_file(state_of(methods), folder / FILE)


def read_weights(place: str | Path) -> dict[str, Tensor]:
    """What a file, or the one in a folder, holds.

    Raises:
        ValueError: It cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(place)
    path = path / FILE if path.is_dir() else path
    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise ValueError(f"weights {path} are no file of safetensors that can be read: {problem}") from problem


def put_weights(methods: Mapping[str, Weighted], found: Mapping[str, Tensor], *, source: str) -> None:
    """Let methods have weights that were read.

    Raises:
        ValueError: A method's are not there, or of other names, sizes or numbers.
    """
    for name, method in methods.items():
        own = {part.removeprefix(f"{name}."): value for part, value in found.items() if part.startswith(f"{name}.")}
        if not own:
            held = _listed({part.partition(".")[0] for part in found})
            raise ValueError(f"weights {source} hold nothing of {name}; they hold {held}")
        wanted = method.held.state_dict()
        if own.keys() != wanted.keys():
            raise ValueError(
                f"weights {source}: {name} with these options has {_listed(wanted)}, and the file {_listed(own)}: set "
                "the options with which they were trained"
            )
        for part, value in own.items():
            if value.shape != wanted[part].shape:
                raise ValueError(
                    f"weights {source}: {part} of {name} is of shape {list(value.shape)}, and for this model with "
                    f"these options of {list(wanted[part].shape)}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"weights {source}: {part} of {name} is not finite")
        method.held.load_state_dict(own)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
