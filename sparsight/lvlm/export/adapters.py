"""Trained adapters by themselves, in peft's format, beside the model that they are merged into."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsight.lvlm.export import reload_adapter
from sparsight.lvlm.model.lora import ADAPTER, is_adapter
from sparsight.lvlm.train.trained import LAYERS, PROJECTOR
from sparsight.publish.fresh_process import EXACT, relative_l2, run_fresh

FOLDER = "adapter"
PROJECTOR_FILE = "projector.safetensors"  # in the folder
_PREFIX = "base_model.model."  # peft's own, before names of the model
_NO_MODULES = (nn.ParameterList, nn.ParameterDict)  # nor can peft call these


def write_adapters(module: Any, folder: Path, *, base: str) -> bool:
    """Write a folder ``adapter`` that ``PeftModel.from_pretrained`` puts on the base model.

    It holds the adapters and, where it was trained, the projector. What of that peft cannot keep (parameters that are
    no module's, modules whose name ends another's) is in a file beside, by the model's own names. Nothing is written
    where layers have left.

    Args:
        module: A SparseLayerTuning.
        folder: The export.
        base: Folder's name or hub id of the base model, as the adapters' configuration names it.

    Returns:
        Whether there is such a folder.
    """
    if not module.adapters or LAYERS not in module.trained:
        return False
    if module.retired.indices:
        left = f"layers {module.retired.indices} have left"
        rank_zero_info(f"the export holds the adapters merged, not in a folder `{FOLDER}` too: {left}")
        return False
    adapter_config(module, base=base).save_pretrained(str(folder / FOLDER))
    kept, beside = kept_tensors(module), tensors_beside(module)
    _save({_saved_as(name): tensor for name, tensor in kept.items()}, folder / FOLDER / "adapter_model.safetensors")
    if beside:
        _save(beside, beside_file(folder))
    return True


def adapter_config(module: Any, *, base: str | None) -> Any:
    """Peft's configuration of a SparseLayerTuning's adapters and of the modules of its projector."""
    from peft import LoraConfig

    made = module.model.peft_config[ADAPTER]
    return LoraConfig(
        r=made.r,
        lora_alpha=made.lora_alpha,
        lora_dropout=made.lora_dropout,
        target_modules=sorted(made.target_modules),
        target_parameters=sorted(made.target_parameters or ()) or None,
        modules_to_save=_kept_modules(module) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )


def kept_names(module: Any) -> set[str]:
    """The names, in peft's file, of what it keeps."""
    return {_saved_as(name) for name in kept_tensors(module)}


def kept_tensors(module: Any) -> dict[str, Tensor]:
    """What peft keeps of a SparseLayerTuning, by names in its model."""
    found: dict[str, Tensor] = {name: module.model.get_parameter(name) for name in module.trained[LAYERS]}
    for name in _kept_modules(module):
        found |= module.model.get_submodule(name).state_dict(prefix=f"{name}.")  # with buffers, as peft has it
    return found


def tensors_beside(module: Any) -> dict[str, Tensor]:
    """The rest of a trained projector, by names in its model."""
    kept = tuple(f"{name}." for name in _kept_modules(module))
    whole = module.model.state_dict()
    inside = {name for part in _trained_projector(module) for name in whole if f"{name}.".startswith(f"{part}.")}
    return {name: whole[name] for name in sorted(inside) if not name.startswith(kept)}


def beside_file(folder: Path) -> Path:
    """Where they are written in an export."""
    return folder / FOLDER / PROJECTOR_FILE


def _trained_projector(module: Any) -> dict[str, nn.Module | nn.Parameter]:
    return module.parts.projector if PROJECTOR in module.trained else {}


def _kept_modules(module: Any) -> list[str]:
    """Names of the modules that peft can keep of a trained projector: those that no other module's name ends with."""
    names = [name for name, _ in module.model.named_modules()]
    found = _single_modules(_trained_projector(module))
    return [name for name in found if not any(other.endswith(name) and other != name for other in names)]


def _single_modules(parts: Mapping[str, nn.Module | nn.Parameter]) -> list[str]:
    """Modules with parameters by name, in place of a list of modules those in it."""
    found: list[str] = []
    for name, part in parts.items():
        if isinstance(part, (nn.ModuleList, nn.ModuleDict)):  # peft refuses them
            found += _single_modules({f"{name}.{child}": module for child, module in part.named_children()})
        elif isinstance(part, nn.Module) and any(True for _ in part.parameters()) and not isinstance(part, _NO_MODULES):
            found.append(name)
    return found


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})


def verify_adapters(module: Any, folder: Path, inputs: Mapping[str, Tensor]) -> None:
    """Put the written adapters on the base model where this project is not, and compare with the model in memory.

    Args:
        module: A SparseLayerTuning; stays as it is.
        folder: The export.
        inputs: What both are asked.

    Raises:
        RuntimeError: They do not load, or the logits differ, both computed in fp32.
    """
    whole = module.whole_copy().float().eval()
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
    """A parameter's name in peft's file."""
    return _PREFIX + (name.replace(f".{ADAPTER}.", ".") if is_adapter(name) else name)
