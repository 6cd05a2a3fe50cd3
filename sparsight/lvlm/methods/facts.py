"""What an artefact of calibration says of the model that it was made with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sparsight.common.plain import setting


def facts_of(model: Any, *, template: str | None = None) -> dict[str, Any]:
    """Id, revision, shape, chat template and resolution of a model; none where that is not known.

    Args:
        model: Of ``AutoModelForImageTextToText``.
        template: The chat template of its processor.

    Returns:
        ``model``, the hub id or the folder's name; ``revision``, a commit of the hub; ``shape``, layers, heads and
        channels; ``template``, a SHA-256; ``resolution``, the side of an image in pixels.
    """
    config, text = model.config, model.config.get_text_config(decoder=True)
    name = setting(config, "_name_or_path") or None
    vision = setting(config, "vision_config")
    side = setting(vision, "image_size")
    return {
        "model": Path(name).name if name and Path(name).is_dir() else name,
        "revision": setting(config, "_commit_hash"),
        "shape": [text.num_hidden_layers, text.num_attention_heads, text.hidden_size],
        "template": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "resolution": list(side) if isinstance(side, (list, tuple)) else side,
    }
