"""Writing the files of an export: pipeline, student, half-precision weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsight.diffusion.export.standalone import standalone
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.students.modeling import load_class, pipeline_file
from sparsight.publish.secrets import hide_places


def write_pipeline(model: DiffusionModel, folder: Path, *, fp16: bool) -> None:
    """Write a pipeline folder for ``DiffusionPipeline.from_pretrained``; ``model`` stays as it is.

    Args:
        model: Pipeline parts; self-attentions of its denoiser may stand in shells.
        folder: Made if it is not there.
        fp16: Write a second copy of the denoiser's weights as ``variant="fp16"``.
    """
    from sparsight.diffusion.pipelines.pixel_pipeline import PIXEL_PIPELINES

    denoiser = standalone(model.denoiser, folder / model.component)
    parts = model.pipeline.components | {model.component: denoiser}
    parts = {name: _in_fp32(part) for name, part in parts.items()}
    kind = type(model.pipeline).__name__
    if kind in PIXEL_PIPELINES:
        options = {key: value for key, value in model.pipeline.config.items() if key not in parts and key[0] != "_"}
        pipeline = load_class(pipeline_file(kind), folder)(**parts, **options)
    else:
        pipeline = copy.copy(model.pipeline)
        pipeline.register_modules(**parts)
    pipeline.save_pretrained(folder)
    if fp16:
        denoiser.half().save_pretrained(folder / model.component, variant="fp16")
    _point_to_code(folder, model.component)
    hide_places(folder)


def _in_fp32(part: Any) -> Any:
    """Text encoders that were held in half precision, as all else in the folder is fp32; the original stays."""
    if not isinstance(part, nn.Module) or all(p.dtype == torch.float32 for p in part.parameters()):
        return part
    device = next(part.parameters()).device
    whole = copy.deepcopy(part.to("cpu")).float()  # a GPU may have no room for the copy
    part.to(device)
    return whole


def _point_to_code(folder: Path, part: str) -> None:
    """``AutoModel`` with a subfolder looks for a model's code in the index of the pipeline, not beside the model.

    Pipelines know no such entry, and pass over what an index calls a default without a word about it.
    """
    address = json.loads((folder / part / "config.json").read_text(encoding="utf-8")).get("auto_map")
    if address is not None:
        _edit(folder / "model_index.json", {"auto_map": address, "_use_default_values": ["auto_map"]})


def _edit(path: Path, added: dict[str, object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | added
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
