"""Tensors that follow from sizes alone, made once for each: where there are few tokens, making them costs the most."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Asked = ParamSpec("Asked")
Made = TypeVar("Made")

_MOST = 64  # results of one function: a denoiser has sites at a few sizes, with a few mixers


def remembered(make: Callable[Asked, Made]) -> Callable[Asked, Made]:
    """As ``make``, whose results are kept for the latest arguments, which must be hashable; nobody may change them.

    Code that is compiled or exported, and modes that make tensors of their own kind, get new ones.
    """

    @functools.lru_cache(_MOST)
    def kept(*arguments: Asked.args, **options: Asked.kwargs) -> Made:
        with torch.inference_mode(False), torch.no_grad():  # whoever trains may use what a forward pass has made
            return make(*arguments, **options)

    @functools.wraps(make)
    def call(*arguments: Asked.args, **options: Asked.kwargs) -> Made:
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return make(*arguments, **options)
        return kept(*arguments, **options)  # type: ignore[arg-type]

    return call
