"""Trained adapters by themselves, in peft's format, beside the model that they are merged into."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsight.export.verify import EXACT, relative_l2, run_fresh
from sparsight.lvlm import reload_adapter
from sparsight.lvlm.trained import LAYERS, PROJECTOR, is_adapter

FOLDER = "adapter"
_PREFIX = "base_model.model."  # peft's own, before names of the model


def write_adapters(module: Any, folder: Path, *, base: str) -> bool:
    """Write a folder ``adapter`` that ``PeftModel.from_pretrained`` puts on the base model.

    It holds the adapters and, where it was trained, the projector. Nothing is written where that would not be the whole
    difference to the base: layers have left, or the projector has parameters that are no module's.

    Args:
        module: A SparseLayerTuning.
        folder: The export.
        base: Folder's name or hub id of the base model, as the adapters' configuration names it.

    Returns:
        Whether there is such a folder.
    """
    if not module.adapters or LAYERS not in module.trained:
        return False
    projector = module.parts.projector if PROJECTOR in module.trained else {}
    alone = [name for name, part in projector.items() if not isinstance(part, nn.Module)]
    if module.retired.indices or alone:
        reason = f"layers {module.retired.indices} have left"
        if alone:
            reason = f"peft keeps modules, and the trained projector has parameters of its own: {', '.join(alone)}"
        rank_zero_info(f"the export holds the adapters merged, not in a folder `{FOLDER}` too: {reason}")
        return False
    from peft import LoraConfig

    made = module.model.peft_config["default"]
    config = LoraConfig(
        r=made.r,
        lora_alpha=made.lora_alpha,
        lora_dropout=made.lora_dropout,
        target_modules=sorted(made.target_modules),
        modules_to_save=list(projector) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder / FOLDER))
    names = [name for part in module.trained.values() for name in part]
    tensors = {_PREFIX + _saved_as(name): module.model.get_parameter(name).detach().cpu() for name in names}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / FOLDER / "adapter_model.safetensors", metadata={"format": "pt"})
    return True


def verify_adapters(module: Any, folder: Path, inputs: Mapping[str, Tensor]) -> None:
    """Put the written adapters on the base model where this project is not, and compare with the model in memory.

    Args:
        module: A SparseLayerTuning; stays as it is.
        folder: The export.
        inputs: What both are asked.

    Raises:
        RuntimeError: They do not load, or the logits differ, both computed in fp32.
    """
    whole = copy.deepcopy(module.model).cpu().float().eval()
    with torch.no_grad():
        expected = whole(**inputs).logits
    del whole
    source = str(Path(module.base).resolve()) if Path(module.base).is_dir() else module.base
    dtype = str(module.frozen_dtype).removeprefix("torch.")
    base = json.dumps({"pretrained_model_name_or_path": source, "dtype": dtype, **module.source})
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch, "question.safetensors"), Path(scratch, "answer.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, question)
        arguments = [str((folder / FOLDER).resolve()), str(question), str(answer), base]
        run_fresh(reload_adapter.__file__, arguments, scratch=scratch)
        error = relative_l2(load_file(answer)["logits"], expected)
    if not error <= EXACT:
        raise RuntimeError(f"the exported adapters answer differently after reloading: relative L2 {error:.2e}")


def _saved_as(name: str) -> str:
    return name.replace(".default.", ".") if is_adapter(name) else name
