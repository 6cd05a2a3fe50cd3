"""Which weights a checkpoint, a cache or an export was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.common.disk.remembered_hash import remembered_hash
from sparsight.common.disk.stored_state import StoredState
from sparsight.common.hashes import state_hash
from sparsight.diffusion.families.conditioning import zeros_for_no_caption
from sparsight.diffusion.model.load import DENOISERS
from sparsight.diffusion.model.scaling import used_settings
from sparsight.diffusion.pipelines.variants import weights_of


def codec_identity(pipeline: Any, *, like: str | None = None) -> dict[str, Any]:
    """All parts of a pipeline that decide latents and text embeddings; a part that was taken out is left out.

    Hashes of the weights stand for name and revision: the same model elsewhere is the same, another revision is not.

    Args:
        pipeline: A diffusers pipeline.
        like: A recorded hash whose kind is taken, see ``state_hash``.
    """
    identity: dict[str, Any] = {"pipeline": type(pipeline).__name__}
    for name, part in pipeline.components.items():
        if name == "vae" and part is not None:
            # what is not set is named as in caches of earlier versions
            scaling: dict[str, Any] = {"scaling_factor": None, "shift_factor": None}
            identity[name] = _weights(part, like=like) | scaling | used_settings(pipeline)
        elif name.startswith("text_encoder") and isinstance(part, nn.Module):
            identity[name] = _weights(part, like=like)
        elif name.startswith("tokenizer") and part is not None:
            identity[name] = {"rules": tokenizer_hash(part)}
    transformer = pipeline.components.get("transformer")
    config = {} if transformer is None else transformer.config
    return identity | {
        "size_conditions": bool(config.get("use_additional_conditions")),
        "zeros_for_no_caption": zeros_for_no_caption(pipeline),
    }


def _weights(part: Any, *, like: str | None) -> dict[str, Any]:
    return {"weights": state_hash(part.state_dict(), like=like), "dtype": str(part.dtype)}


def stored_hash(denoiser: Any, stored: StoredState | None, load: Callable[[], Mapping[str, Tensor]]) -> str:
    """``state_hash`` of a denoiser's weights in float32, in whatever precision it was loaded.

    Files are read for it one tensor at a time, once as long as they do not change. A quantised denoiser has no other
    weights than those it was loaded with.

    Args:
        denoiser: As it was loaded.
        stored: Its weights in files, see ``stored_weights_of``.
        load: Loads the weights in float32, for denoisers whose tensors have other names in files.
    """
    packed = denoiser.config.get("quantization_config")
    if stored is not None and not packed:
        return remembered_hash(stored)
    return state_hash(denoiser.state_dict() if packed or in_float32(denoiser) else load())


def in_float32(module: nn.Module) -> bool:
    """Whether all floating-point tensors of a module's state are in float32."""
    return all(tensor.dtype == torch.float32 for tensor in module.state_dict().values() if tensor.is_floating_point())


def stored_weights_of(denoiser: Any, *, variant: str | None) -> StoredState | None:
    """Weights in the files that a denoiser was loaded from; none if its tensors have other names there.

    Args:
        denoiser: As it was loaded.
        variant: Weight variant that was asked for.
    """
    names = denoiser.state_dict().keys()
    origin = Path(str(denoiser.config.get("_name_or_path")))
    folders = (origin, *(origin / name for name in DENOISERS))
    found = (StoredState(weights_of(folder, variant)) for folder in folders)
    return next((stored for stored in found if stored.keys() == names), None)


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the rules by which a tokenizer makes tokens of texts."""
    from transformers import PreTrainedTokenizerFast

    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if fast else {"vocabulary": tokenizer.get_vocab()}
    for changed_by_use in ("padding", "truncation"):
        rules.pop(changed_by_use, None)
    rules = {"class": type(tokenizer).__name__, "length": tokenizer.model_max_length, "rules": rules}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
