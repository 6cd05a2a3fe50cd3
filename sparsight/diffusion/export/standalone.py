"""A denoiser as it is exported: students in place of their shells, teachers gone, tensors shared with the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.families.known import example_inputs, family_of, plain_class
from sparsight.diffusion.measure.flops import meta_student
from sparsight.diffusion.students.modeling import load_class, student_file
from sparsight.diffusion.surgery.known_mixers import mixer_kinds
from sparsight.diffusion.surgery.record import record_of
from sparsight.diffusion.surgery.replace import set_mode, shells_of
from sparsight.diffusion.surgery.rest.low_rank import without_adapters
from sparsight.diffusion.surgery.shell import Mode
from sparsight.publish.carry.assemble import CodeFile

FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Layers that diffusers adds to an attention with ``fuse_qkv_projections``, and those that it makes each of."""


def student_code(denoiser: nn.Module) -> CodeFile | None:
    """The file of code that a denoiser needs besides diffusers; none if nothing is replaced in it."""
    mixers = mixer_kinds(denoiser)
    return student_file(mixers, family_of(denoiser).name) if mixers else None


def student_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """The denoiser's tensors under the names that they have without shells; teachers are left out.

    Fused projections are left out too: they hold once more what the layers hold that they were made of. Adapters that
    were trained beside the mixers are merged.

    Raises:
        ValueError: There are tensors that a denoiser of this class and these mixers does not have, such as those of an
            adapter, or fused projections that are not what their layers are.
    """
    shells = shells_of(denoiser)
    beside = tuple(f"{path}." for path in shells)
    state = {name: tensor for name, tensor in denoiser.state_dict().items() if not name.startswith(beside)}
    for path, shell in shells.items():
        state |= shell.as_student().state_dict(prefix=f"{path}.")
    state = _unfused(without_adapters(denoiser, state))
    _refuse_others(denoiser, state)
    return state


def _unfused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without those of fused projections.

    Raises:
        ValueError: They differ from the layers that they were fused from.
    """
    kept = dict(state)
    for name in state:
        path, _, kind = name.rpartition(".")
        site, _, layer = path.rpartition(".")
        if layer not in FUSED:
            continue
        parts = [state.get(f"{site}.{part}.{kind}") for part in FUSED[layer]]
        same = [part for part in parts if part is not None]
        if len(same) < len(parts) or not torch.equal(kept.pop(name), torch.cat(same)):
            raise ValueError(
                f"{path} is fused and no longer holds what {', '.join(FUSED[layer])} do: load the denoiser anew, train "
                "and load adapters without fuse_qkv_projections()"
            )
    return kept


def _refuse_others(denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names what stands around the layers of a denoiser, and how to be rid of it."""
    wanted = meta_student(denoiser).state_dict().keys()
    unknown, missing = sorted(state.keys() - wanted), sorted(wanted - state.keys())
    if not unknown and not missing:
        return
    adapter = next((name for name in unknown if ".lora_" in name or ".base_layer." in name), None)
    if adapter is not None:
        layer = adapter.partition(".lora_")[0].partition(".base_layer.")[0]
        raise ValueError(
            f"{layer} has an adapter, which is part of no export: merge it into the weights before mixers are put in "
            "place (fuse_lora(), then unload_lora(), or PEFT's merge_and_unload()), or take it off (unload_lora())"
        )
    told = [f"{each[0]} is {what}" for each, what in ((unknown, "not known"), (missing, "missing")) if each]
    raise ValueError(
        f"this denoiser is no plain {family_of(denoiser).name} with mixers any more, so it cannot be exported: "
        f"{', '.join(told)} (of {len(unknown) + len(missing)} such names); take off what was put around its layers"
    )


def standalone(denoiser: Any, folder: Path) -> Any:
    """A model of the exported class, in fp32 on the CPU; tensors that are so already are shared, not copied.

    Args:
        denoiser: A diffusers model, with shells or students in it, or untouched.
        folder: Where the code of a student is written, and must stay until the model is saved.

    Raises:
        ValueError: See :func:`student_state`.
    """
    from diffusers.models.modeling_utils import no_init_weights

    state = {name: _plain(tensor) for name, tensor in student_state(denoiser).items()}
    options = {key: value for key, value in denoiser.config.items() if not key.startswith("_") and key != "student"}
    code = student_code(denoiser)
    with no_init_weights():
        if code is None:
            model = plain_class(denoiser).from_config(options)
        else:
            model = load_class(code, folder)(**options, student=record_of(denoiser))
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


@torch.no_grad()
def reference_output(denoiser: Any) -> tuple[dict[str, Any], Tensor]:
    """Fixed inputs (batch 2, of its family's ``check_size``), and what the student in memory returns for them."""
    parameter, family = next(denoiser.parameters()), family_of(denoiser)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = family.check_size(denoiser)
        inputs = example_inputs(denoiser, batch=2, size=size, dtype=compute_dtype(denoiser))
    inputs["timestep"] = family.told(torch.tensor([100, 900]))
    with _as_student(denoiser), torch.compiler.set_stance("force_eager"):
        output = denoiser(**_on(parameter.device, inputs), return_dict=False)[0]
    return inputs, output.float().cpu()


def _on(device: torch.device, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: _on(device, value) for name, value in inputs.items()}
    return inputs if inputs is None else inputs.to(device)


@contextmanager
def _as_student(denoiser: nn.Module) -> Iterator[None]:
    """Eval mode, students at the sites, full precision; afterwards everything is as it was."""
    shells = list(shells_of(denoiser).values())
    modes = [shell.mode for shell in shells]
    training = [module for module in denoiser.modules() if module.training]
    precision = torch.get_float32_matmul_precision()
    denoiser.eval()
    set_mode(shells, Mode.STUDENT)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for shell, mode in zip(shells, modes, strict=True):
            shell.mode, shell.output = mode, None
        for module in training:
            module.training = True
