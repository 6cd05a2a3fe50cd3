"""Giving again what modules returned before, when only what comes after them has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from sparsight.lvlm.model.bypass import replaced_forward


class Replay:
    """Outputs of modules in one forward pass, given again in passes on the same inputs.

    Args:
        modules: What to record.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)
        self.outputs: dict[nn.Module, list[Any]] = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the outputs of a forward pass inside; those of an earlier one are forgotten."""
        self.outputs = {module: [] for module in self.modules}
        hooks = [module.register_forward_hook(self._keep) for module in self.modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        self.outputs[module].append(_container_copied(output))

    @contextmanager
    def replay(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Let these modules, all of them recorded, return in a forward pass inside without computing."""
        with ExitStack() as stack:
            for module in modules:
                outputs = iter(self.outputs[module])
                stack.enter_context(replaced_forward(module, _returning(outputs)))
            yield


def _returning(outputs: Iterator[Any]) -> Callable[..., Any]:
    return lambda *_, **__: _container_copied(next(outputs))


def _container_copied(output: Any) -> Any:
    """Models write into the containers that they get; the tensors in them stay."""
    return output if isinstance(output, Tensor) else copy.copy(output)
