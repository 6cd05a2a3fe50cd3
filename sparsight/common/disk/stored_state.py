"""Tensors in safetensors files as they would be loaded in float32, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class StoredState(Mapping[str, Tensor]):
    """A state dict that is read where it is asked for: memory for one tensor suffices to hash it.

    Args:
        files: Safetensors files with the tensors of one module.

    Attributes:
        files: See above.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._file: dict[str, Path] = {}
        for path in files:
            with safe_open(path, framework="pt") as opened:
                self._file |= dict.fromkeys(opened.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.read(name)
        return tensor.float() if tensor.is_floating_point() else tensor

    def read(self, name: str) -> Tensor:
        """A tensor in the precision that it is stored in."""
        with safe_open(self._file[name], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)
