"""An attention with a mixer as its core: everything around softmax(QK)V stays the attention's own.

The attention's class is exchanged for one that runs the same forward pass while ``scaled_dot_product_attention`` is led
to the mixer. Projections, norms, processors, adapters and names in the state dict stay; ``mixer.*`` is added. Imports
torch and ``blocks.base`` only: exported models carry this file's text as it is.

Shape legend: B batch, N tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsight.diffusion.surgery.stamp import stamped
from sparsight.diffusion.surgery.student import COMPUTE, OnGrid, checked_grid, entering, refuse_others

NO_CORE = (
    "called no scaled_dot_product_attention that its mixer could take the place of: choose torch's own attention "
    "(set_attn_processor(AttnProcessor2_0()), disable_attention_slicing(), set_attention_backend('native'))"
)


class CoreSite(OnGrid):
    """Mixed into an attention's own class by :func:`class_of`; the attention gets a child called ``mixer``.

    Attributes:
        attention_class: The attention's own class.
        mixer: The :class:`blocks.base.CoreMixer`.
    """

    attention_class: ClassVar[type]
    kind: ClassVar[type]
    mixer: Any

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """Map (B, N, C) to (B, N, C) as the attention does, with the mixer as its core.

        Raises:
            ValueError: A mask, an encoder state or what a mixer knows nothing of is given, the tokens do not fill the
                grid, or the attention computes its core in a way that cannot be led to the mixer.
        """
        refuse_others(self.mixer.site.path, encoder_hidden_states, attention_mask, cross_attention_kwargs)
        led = _Led(self)
        with led:  # Dynamo loses the attributes of what "as" would name
            output: Tensor = super().forward(hidden_states)  # type: ignore[misc]
        led.check()
        return output.to(hidden_states.dtype)

    def trained_layers(self) -> Sequence[tuple[Any, nn.Module]]:
        """The attention's linear layers that others compute in place of, each with that other."""
        return ()

    def core(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """What the mixer makes of queries, keys and values (B, h, N, d), in the dtype of the queries."""
        path, dtype, device = self.mixer.site.path, q.dtype, q.device.type
        if k.shape[1] != q.shape[1]:
            raise ValueError(f"{path} has {k.shape[1]} heads of keys for {q.shape[1]} of queries: no mixer takes that")
        grid = checked_grid(checked_grid(self.grid, q.shape[2], path), k.shape[2], path)
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
        q = entering(q, self.mixer)
        k, v = k.to(q.dtype), v.to(q.dtype)
        mixed: Tensor = self.mixer(q, k, v, grid, q.shape[-1] ** -0.5 if scale is None else scale)
        return stamped(mixed.to(dtype), *grid.sizes)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.kind, self.attention_class), self.__dict__


class _Led(TorchFunctionMode):
    """Leads the core of one site to its mixer and trained layers to their weights; all else passes."""

    def __init__(self, site: CoreSite) -> None:
        super().__init__()
        self.site = site
        self.trained = site.trained_layers()
        self.cores, self.layers = 0, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return self._core(*args, **kwargs or {})
        if function is F.linear:
            return self._linear(*args, **kwargs or {})
        return function(*args, **kwargs or {})

    def _core(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        self.cores += 1
        if attn_mask is not None or is_causal or dropout_p > 0:
            given = "a mask" if attn_mask is not None else "a causal mask" if is_causal else "dropout"
            raise ValueError(f"{self.site.mixer.site.path} has {given} on its attention, which no mixer takes")
        return self.site.core(query, key, value, scale)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        for own, layer in self.trained:
            if weight is own.weight:  # asked for now: offloading exchanges weights for every call
                self.layers += 1
                trained: Tensor = layer(entering(x, layer))
                return trained
        # beside layers that are kept in a precision of their own
        return F.linear(x.to(weight.dtype) if weight.dtype in COMPUTE else x, weight, bias)

    def check(self) -> None:
        """Raise a ValueError if the forward pass has passed by the mixer, or by a trained layer."""
        path = self.site.mixer.site.path
        if self.cores == 0:
            raise ValueError(f"{path} {NO_CORE}")
        if self.layers < len(self.trained):
            raise ValueError(f"{path} did not call its trained projections: call unfuse_qkv_projections() first")


_classes: dict[tuple[type, type], Any] = {}


def class_of(kind: type, attention_class: type) -> Any:
    """The class of a site: of ``kind``, a :class:`CoreSite`, around an attention's class."""
    members = {"attention_class": attention_class, "kind": kind, "__module__": kind.__module__}
    name = f"{attention_class.__name__}{kind.__name__}"
    return _classes.setdefault((kind, attention_class), type(name, (kind, attention_class), members))


def _blank(kind: type, attention_class: type) -> Any:
    made = class_of(kind, attention_class)
    return made.__new__(made)


def twin(module: nn.Module, kind: type, children: Mapping[str, nn.Module | None]) -> Any:
    """Another object with a module's tensors and submodules, of which some are others or gone.

    Args:
        module: Stays as it is.
        kind: Class of the twin.
        children: By their paths below the module; nothing for those that the twin is to lack.
    """
    made: Any = object.__new__(kind)
    made.__dict__.update(module.__dict__)
    made._modules = dict(module._modules)
    for path, child in children.items():
        name, _, rest = path.partition(".")
        if child is None:
            made._modules.pop(name)
        elif rest:
            inner = made._modules[name]
            made._modules[name] = twin(inner, type(inner), {rest: child})
        else:
            made._modules[name] = child
    return made


def core_site(attention: nn.Module, mixer: nn.Module) -> Any:
    """The site of an attention, which shares all of its tensors and submodules."""
    return twin(attention, class_of(CoreSite, attention.__class__), {"mixer": mixer})
