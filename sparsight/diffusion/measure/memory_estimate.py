"""What training a denoiser, or mixers in it, will need of a device's memory, told before it starts.

Weights, gradients and optimiser state are counted. Activations are counted too: the denoiser runs once with fake
tensors, which have shape, dtype and device but no memory, and every tensor that autograd keeps for the backward pass is
noted.

Shape legend: B batch, C channels, H and W height and width in model space.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from sparsight.common.measure.memory_table import (
    MemoryEstimate,
    available_bytes,
    tensor_bytes,
    tensors_of,
    training_bytes,
)
from sparsight.common.quantised.weights import has_codes, is_coded
from sparsight.common.training.dtypes import compute_dtype
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.replace import set_mode, shells_of
from sparsight.diffusion.surgery.rest.rest import rest_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.site_error import mean_squares

NOT_COUNTED = (
    "encoding and decoding of images, activations that no backward pass needs, gradients of activations while they are "
    "passed on, workspaces of kernels, and what the driver and the allocator keep (often 1 to 2 GiB)"
)
REMEDIES = "set compute.gradient_checkpointing to true, lower batch_size and raise trainer.accumulate_grad_batches, "
FEWER_SITES = "set loading.dtype to bfloat16 and loading.quantization to int8, or replace fewer sites"
FEWER_PARAMETERS = "or train fewer parameters"
OBJECTIVES = ("layerwise", "end_to_end", "denoising")


@dataclass
class Saved:
    """What autograd keeps for a backward pass.

    Attributes:
        kept: Bytes kept from the forward pass on.
        recomputed: Bytes of the largest block that gradient checkpointing computes again, on top of ``kept``.
    """

    kept: int
    recomputed: int = 0

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.kept + self.recomputed


def estimate_memory(
    denoiser: Any,
    *,
    objectives: Iterable[str],
    batch: int,
    size: tuple[int, ...] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    averaged: bool = False,
    others: Mapping[str, nn.Module] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | None = None,
    twice: Collection[str] = (),
) -> MemoryEstimate:
    """Estimate what training takes: of the mixers in a denoiser with shells, or of a denoiser itself.

    Args:
        denoiser: On any device, ``meta`` included; it is called, with fake tensors, and left as it was.
        objectives: ``layerwise``, ``end_to_end`` or both; ``denoising`` for a denoiser without shells.
        batch: Samples on the device.
        size: Sides in model space; those that the denoiser was made for if not given.
        optimizer: Called as ``optimizer(parameters, learning_rate)``.
        averaged: Whether a moving average of what is trained is kept.
        others: Modules beside the denoiser by name, such as text encoders and VAE.
        autocast: Makes the context in which training runs the denoiser.
        device: Where training runs; the denoiser's own device if not given.
        twice: Objectives that see every sample twice.
    """
    device = device or next(denoiser.parameters()).device
    rest = rest_of(denoiser)
    kept = 0 if rest is None else tensor_bytes(rest.kept)
    frozen = tensor_bytes(tensor for tensor in tensors_of(denoiser) if not tensor.requires_grad) - kept
    trained = tensor_bytes(tensor for tensor in tensors_of(denoiser) if tensor.requires_grad)
    dtype = str(compute_dtype(denoiser)).removeprefix("torch.") + (" and int8" if has_codes(denoiser) else "")
    standing = {
        f"frozen part of the denoiser, {dtype}": frozen,
        "what is trained": trained,
        **training_bytes(trained, optimizer=optimizer, averaged=averaged),
    }
    standing |= {"what the teacher keeps of what is trained": kept} if kept else {}
    standing |= {name: tensor_bytes(tensors_of(module)) for name, module in (others or {}).items()}
    wanted = set(objectives)
    options: dict[str, Any] = {"size": size, "autocast": autocast, "device": device}
    stages = {
        f"activations, batch {batch}, {name}": saved_bytes(
            denoiser, name, batch=batch * (2 if name in twice else 1), **options
        ).total
        for name in OBJECTIVES
        if name in wanted
    }
    remedies = REMEDIES + (FEWER_SITES if shells_of(denoiser) else FEWER_PARAMETERS)
    return MemoryEstimate(standing, NOT_COUNTED, remedies, stages=stages, available=available_bytes(device))


def saved_bytes(
    denoiser: Any,
    objective: str,
    *,
    size: tuple[int, ...] | None = None,
    batch: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | None = None,
) -> Saved:
    """What autograd keeps of one forward pass, without running it; arguments as ``estimate_memory``."""
    device = device or next(denoiser.parameters()).device
    shells = shells_of(denoiser)
    modes = {path: shell.mode for path, shell in shells.items()}
    dtype = compute_dtype(denoiser)
    state = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.compiler.set_stance("force_eager"):
        fakes = {name: _fake(mode, tensor, device) for name, tensor in state.items()}
        inputs = example_inputs(denoiser, batch=batch, size=size, device=device, dtype=dtype)
        count = _Count(known=fakes.values())
        layerwise = objective == "layerwise"
        set_mode(shells.values(), Mode.LAYERWISE if layerwise else Mode.STUDENT)
        try:
            with _probing(denoiser, count), count, autocast(), torch.set_grad_enabled(not layerwise):
                # a module that stands at two places is found at both without ties, and with them is left with the fakes
                given = inputs | {"return_dict": False}
                answer = functional_call(denoiser, fakes, kwargs=given, tie_weights=False)[0]
                if not layerwise:
                    for output in (answer, *(shell.take_output() for shell in shells.values())):
                        mean_squares(output, torch.zeros_like(output))
        finally:
            for path, shell in shells.items():
                shell.mode, shell.output, shell.squares = modes[path], None, None
    return Saved(count.bytes, count.largest)


@runtime_checkable
class Checkpointing(Protocol):
    """A module of diffusers that can recompute its blocks."""

    gradient_checkpointing: bool


@dataclass
class _Count:
    """Context in which saved tensors are counted, each storage once, those that are weights not at all."""

    known: Iterable[Tensor]
    seen: dict[int, Tensor] = field(default_factory=dict)
    bytes: int = 0
    largest: int = 0

    def __post_init__(self) -> None:
        self.seen = {tensor.untyped_storage()._cdata: tensor for tensor in self.known}
        self._hooks = saved_tensors_hooks(self.add, lambda tensor: tensor)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def add(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is kept; holding it keeps its storage's address from being used again."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen[storage._cdata] = tensor
            self.bytes += storage.nbytes()
        return tensor


@contextmanager
def _probing(denoiser: Any, count: _Count) -> Iterator[None]:
    """Where blocks are checkpointed, keep their inputs only, and note the largest of what is computed again."""
    changed = {m: m._gradient_checkpointing_func for m in _checkpointed(denoiser)}

    def checkpoint(block: Callable[..., Any], *inputs: Any) -> Any:
        within = _Count(known=count.seen.values())
        with within:
            outputs = block(*inputs)
        count.largest = max(count.largest, within.bytes)
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                count.add(tensor)
        return outputs

    for module in changed:
        module._gradient_checkpointing_func = checkpoint
    try:
        yield
    finally:
        for module, function in changed.items():
            module._gradient_checkpointing_func = function


def _checkpointed(denoiser: nn.Module) -> Iterator[Any]:
    """Modules whose blocks are recomputed."""
    return (m for m in denoiser.modules() if isinstance(m, Checkpointing) and m.gradient_checkpointing)


def _fake(mode: FakeTensorMode, tensor: Tensor, device: torch.device) -> Tensor:
    # of codes, which layers decode for a moment, what they stand for
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return FakeTensor(mode, empty if is_coded(tensor) else tensor.detach().to("meta"), device).requires_grad_(
        tensor.requires_grad
    )
