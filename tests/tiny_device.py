"""A device on paper: tensors there have shapes and no numbers, so that whoever waits for one is found out.

Tensors of the processor are real beside them. On a machine with a GPU `torch.cuda.set_sync_debug_mode` tells as much.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PAPER = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
READS = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.numpy)


class Waits(TorchDispatchMode):
    """While it is entered, notes everything that would wait for the device, and goes on with zeros, and with truth.

    Attributes:
        noted: Each wait, with the lines that led to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []
        self._reads = _Reads(self)

    def __enter__(self) -> Any:
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *ending: Any) -> None:
        super().__exit__(*ending)
        self._reads.__exit__(*ending)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation not in COPIES:
            return operation(*args, **kwargs)
        begins = args[1] if operation is COPIES[1] else args[0]
        ends = args[0].device if operation is COPIES[1] else torch.device(kwargs.get("device") or begins.device)
        if begins.device.type == ends.type or (begins.ndim == 0 and operation is COPIES[1]):
            return operation(*args, **kwargs)
        if not (kwargs.get("non_blocking") or True in args[2:]):
            self.note(f"{operation} from {begins.device} to {ends}")
        if begins.device == PAPER:  # it arrives later
            return torch.zeros(begins.shape, dtype=kwargs.get("dtype") or begins.dtype)
        return operation(*args, **kwargs)

    def note(self, what: str) -> None:
        lines = [line for line in traceback.format_stack() if __file__ not in line]
        self.noted.append(f"{what}\n{''.join(lines[-6:])}")


class _Reads(TorchFunctionMode):
    """What reads numbers of the device, or puts some there without a tensor on this side."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == PAPER:
            self.waits.note(f"{function.__name__} on {PAPER}")
        if function in READS and args[0].device == PAPER:
            self.waits.note(function.__name__)
            return function is Tensor.__bool__ or function(torch.zeros(args[0].shape, dtype=args[0].dtype))
        return function(*args, **kwargs)


class _Accelerator(CPUAccelerator):
    """Lightning's, for a device that is none."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""


class OnPaper(SingleDeviceStrategy):
    """Trains there."""

    def __init__(self) -> None:
        super().__init__(device=PAPER, accelerator=_Accelerator())

    def teardown(self) -> None:
        """Nothing comes back."""


class FusedOnPaper(torch.optim.AdamW):
    """An optimiser that leaves out steps on its device, where no kernel could run."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        for group in self.param_groups:
            group["fused"] = True

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """The closure alone."""
        return closure()
