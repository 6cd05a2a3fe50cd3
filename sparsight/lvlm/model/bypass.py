"""Switching decoder layers off without taking them out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """Let another function stand in for a module's forward, which comes back; hooks, parameters and name stay."""
    return replaced_method(module, "forward", forward)


@contextmanager
def replaced_method(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Let another function stand in for a module's method, which comes back."""
    own = module.__dict__.get(name)  # accelerate puts its own there
    module.__dict__[name] = method
    try:
        yield
    finally:
        if own is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = own


@contextmanager
def bypassed(layers: Sequence[nn.Module] | nn.ModuleList, indices: Iterable[int]) -> Iterator[None]:
    """Let decoder layers pass their hidden states on unchanged, at no cost; gradients flow through.

    Only for calls with ``use_cache=False``: a layer that is off writes no keys and values, on which generation counts.
    Layers return the bare tensor, as those of transformers 5 do.

    Args:
        layers: All decoder layers.
        indices: Which are off, counted from 0.

    Raises:
        ValueError: Inside, if the model is called with a cache.
    """
    with ExitStack() as stack:
        for index in set(indices):
            stack.enter_context(replaced_forward(layers[index], _unchanged))
        yield


def _unchanged(*args: Any, **kwargs: Any) -> Tensor:
    if kwargs.get("past_key_values") is not None:
        raise ValueError("a bypassed layer fills no cache: call the model with use_cache=False")
    return entering(args, kwargs)


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a decoder layer is called with."""
    return args[0] if args else kwargs["hidden_states"]


def leaving(output: Any) -> Tensor:
    """The hidden states that a decoder layer returns."""
    return output[0] if isinstance(output, tuple) else output
