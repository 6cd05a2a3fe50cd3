"""Writing the files of an export: pipeline, student, half-precision weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from sparsight.diffusion.model import DiffusionModel
from sparsight.diffusion.pixel_pipeline import PixelDiTPipeline
from sparsight.export.modeling import load_class, pipeline_file
from sparsight.export.standalone import standalone


def write_pipeline(model: DiffusionModel, folder: Path, *, fp16: bool) -> None:
    """Write a pipeline folder for ``DiffusionPipeline.from_pretrained``; ``model`` stays as it is.

    Args:
        model: Pipeline parts; self-attentions of its denoiser may stand in shells.
        folder: Made if it is not there.
        fp16: Write a second copy of the denoiser's weights as ``variant="fp16"``.
    """
    denoiser = standalone(model.denoiser, folder / model.component)
    if type(model.pipeline).__name__ == PixelDiTPipeline.__name__:
        options = {"scheduler": model.pipeline.scheduler, "id2label": model.pipeline.config.get("id2label")}
        pipeline = load_class(pipeline_file(), folder)(transformer=denoiser, **options)
    else:
        pipeline = copy.copy(model.pipeline)
        pipeline.register_modules(**{model.component: denoiser})
    pipeline.save_pretrained(folder)
    if fp16:
        denoiser.half().save_pretrained(folder / model.component, variant="fp16")
    _point_to_code(folder, model.component)
    _forget_places(folder)


def _point_to_code(folder: Path, part: str) -> None:
    """``AutoModel`` with a subfolder looks for a model's code in the index of the pipeline, not beside the model."""
    address = json.loads((folder / part / "config.json").read_text(encoding="utf-8")).get("auto_map")
    if address is not None:
        _edit(folder / "model_index.json", {"auto_map": address})


def _forget_places(folder: Path) -> None:
    """Take out where each part was loaded from: folders of the machine that exports."""
    for path in folder.rglob("*.json"):
        if path.name in ("config.json", "model_index.json"):
            _edit(path, {}, without="_name_or_path")


def _edit(path: Path, added: dict[str, object], *, without: str = "") -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | added
    content.pop(without, None)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
