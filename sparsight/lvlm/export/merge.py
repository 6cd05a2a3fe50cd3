"""Adapters in peft's format merged into their base model, for programs that load whole models."""

from __future__ import annotations

from pathlib import Path

from sparsight.common.errors import ConfigurationError
from sparsight.common.text import read_json

ADAPTERS = "adapter_config.json"


def merge_adapters(adapters: Path, folder: Path) -> None:
    """Write a folder with base model, adapters merged, and processor.

    Args:
        adapters: Folder in peft's format, whose configuration names the base model.
        folder: To make.

    Raises:
        ConfigurationError: No base model is named, or it is none for images and text.
    """
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = read_json(adapters / ADAPTERS).get("base_model_name_or_path")
    if not base:
        raise ConfigurationError(f"{adapters / ADAPTERS} names no base model: set base_model_name_or_path")
    try:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{adapters}: its base model {base!r} cannot be loaded: {error}") from error
    PeftModel.from_pretrained(model, str(adapters)).merge_and_unload().save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
