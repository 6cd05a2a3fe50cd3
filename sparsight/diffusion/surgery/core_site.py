"""An attention with a mixer as its core: everything around softmax(QK)V stays the attention's own.

At a joint site, where text attends in the same sequence, the mixer stands for the image's own part of the core
(``sparsight.diffusion.surgery.joint``).

The attention's class is exchanged for one that runs the same forward pass while ``scaled_dot_product_attention`` is led
to the mixer. Projections, norms, processors, adapters and names in the state dict stay; ``mixer.*`` is added. Exported
models carry this file's text as it is.

Shape legend: B batch, N tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blocks.base import under_autocast
from sparsight.diffusion.surgery.joint import give_mass, joint_core
from sparsight.diffusion.surgery.stamp import stamped
from sparsight.diffusion.surgery.student import (
    COMPUTE,
    OnGrid,
    check_shape,
    checked_grid,
    delivered_grid,
    entering,
    refuse_others,
)

NO_CORE = (
    "called no scaled_dot_product_attention that its mixer could take the place of: choose torch's own attention by "
    "set_attention_backend('native') or, where processors decide as in U-Nets, by "
    "set_attn_processor(AttnProcessor2_0()) and disable_attention_slicing()"
)

IMAGE_PROMPT = "ip_hidden_states"


class CoreSite(OnGrid):
    """Mixed into an attention's own class by ``class_of``; the attention gets a child called ``mixer``.

    Attributes:
        attention_class: The attention's own class.
        mixer: A ``blocks.base.CoreMixer``, or at a joint site any mixer.
    """

    attention_class: ClassVar[type]
    kind: ClassVar[type]
    mixer: Any

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
        **cross_attention_kwargs: Any,
    ) -> Any:
        """Map (B, N, C) to (B, N, C) as the attention does, with the mixer as its core; at a joint site text, too.

        Raises:
            ValueError: A mask, an encoder state or what the attention knows nothing of is given, the tokens do not fill
                the grid, or the attention computes its core in a way that cannot be led to the mixer.
        """
        site = self.mixer.site
        if rotary_emb is not None:  # some hand it over by its place
            cross_attention_kwargs["rotary_emb"] = rotary_emb
        taken = self._taken(cross_attention_kwargs)
        others = {name: value for name, value in cross_attention_kwargs.items() if name not in taken}
        refuse_others(site.path, None if site.text else encoder_hidden_states, attention_mask, others)
        if encoder_hidden_states is not None:
            checked_grid(self.grid, hidden_states.shape[1], site.path)
        if self._is_attention(hidden_states, joined=encoder_hidden_states is None):
            return super().forward(hidden_states, encoder_hidden_states, **taken)  # type: ignore[misc]
        led = _Led(self, hidden_states, prompted=IMAGE_PROMPT in taken)
        with led:  # Dynamo loses the attributes of what "as" would name
            output = super().forward(hidden_states, encoder_hidden_states, **taken)  # type: ignore[misc]
        led.check()
        dtype = hidden_states.dtype
        return output.to(dtype) if isinstance(output, Tensor) else tuple(part.to(dtype) for part in output)

    def _is_attention(self, hidden_states: Tensor, *, joined: bool) -> bool:
        """Whether nothing learns, and the mixer would give what the attention gives, which then does so by itself."""
        if torch.is_grad_enabled() or self.trained_layers():
            return False
        site, grid = self.mixer.site, delivered_grid(self.grid, self.mixer.site.path)
        if joined:
            site.layout(grid, hidden_states.shape[1])
        return bool(self.mixer.is_attention(grid))

    def _taken(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those options that the attention's processor has names for, such as an image prompt's hidden states."""
        if not options:
            return {}
        names = inspect.signature(self.processor.__call__).parameters  # type: ignore[attr-defined]
        return {name: value for name, value in options.items() if name in names}

    def trained_layers(self) -> Sequence[tuple[Any, nn.Module]]:
        """The attention's linear layers that others compute in place of, each with that other."""
        return ()

    def core(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, hidden_states: Tensor) -> Tensor:
        """What the mixer makes of queries, keys and values (B, h, tokens, d), in the dtype of the queries."""
        site, dtype = self.mixer.site, q.dtype
        if k.shape[1] != q.shape[1]:
            raise ValueError(
                f"{site.path} has {k.shape[1]} heads of keys for {q.shape[1]} of queries: no mixer takes that"
            )
        grid = delivered_grid(self.grid, site.path)
        layout = site.layout(grid, q.shape[2])
        if k.shape[2] != q.shape[2]:
            raise ValueError(f"{site.path} has {k.shape[2]} keys for {q.shape[2]} queries: no mixer takes that")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if under_autocast(q):
            q, k, v = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (q, k, v))
        if site.text is None:
            q = entering(q, self.mixer)
            k, v = k.to(q.dtype), v.to(q.dtype)
            mixed: Tensor = self.mixer(q, k, v, grid, scale)
            check_shape(mixed, q, self.mixer)
        else:
            k, v = k.to(q.dtype), v.to(q.dtype)  # of norms and of projections that are trained in float32
            image_BNC = site.layout(grid, hidden_states.shape[1]).image(hidden_states)
            mixed = joint_core(self.mixer, q, k, v, layout, scale, image_BNC)
        return stamped(mixed.to(dtype), *grid.sizes)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.kind, self.attention_class), self.__dict__


class _Led(TorchFunctionMode):
    """Leads the core of one site to its mixer and trained layers to their weights; all else passes."""

    def __init__(self, site: CoreSite, hidden_states: Tensor, *, prompted: bool = False) -> None:
        super().__init__()
        self.prompted = prompted
        self.site, self.hidden_states = site, hidden_states
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
        if self.cores and (self.prompted or key.shape[2] != query.shape[2]):  # keys of image prompts, beside the core
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        self.cores += 1
        if self.cores > 1:
            raise ValueError(f"{self.site.mixer.site.path} attends to its own tokens twice, which no mixer takes")
        if attn_mask is not None or is_causal or dropout_p > 0:
            given = "a mask" if attn_mask is not None else "a causal mask" if is_causal else "dropout"
            raise ValueError(f"{self.site.mixer.site.path} has {given} on its attention, which no mixer takes")
        return self.site.core(query, key, value, scale, self.hidden_states)

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
    """The class of a site: of ``kind``, a ``CoreSite``, around an attention's class."""
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
    give_mass(mixer, next(attention.parameters()).device)
    return twin(attention, class_of(CoreSite, attention.__class__), {"mixer": mixer})
