"""A core site that is the teacher, too: one attention, with the mixer as its core in student mode only.

Trained projections are full copies of the attention's linear layers, in float32, below the mixer. In student mode they
compute in place of the attention's own, which stay as they are; alone, the student has them in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import FeatureMixer, TokenMixer
from sparsight.diffusion.surgery.core_site import CoreSite, class_of, core_site, twin
from sparsight.diffusion.surgery.joint import MASS, give_mass
from sparsight.diffusion.surgery.shell import Shell

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
TRAINED = "trained_projections"
"""Child of a mixer that holds copies of the attention's layers; no mixer may have one of that name itself."""


class CoreShell(Shell, CoreSite):
    """Mixed into an attention's own class by ``core_shell``."""

    @property
    def attention(self) -> Any:
        """The site itself."""
        return self

    def as_teacher(self) -> Any:
        """The attention as it was, of the same tensors."""
        teacher = twin(self, self.attention_class, {"mixer": None})  # type: ignore[arg-type]
        for name in ("mode", "handed_over", "output", "squares", "_sides"):
            vars(teacher).pop(name, None)
        return teacher

    def as_student(self) -> Any:
        """The attention with another core, and trained projections in the place of its own."""
        trained = self._trained()
        mixer = twin(self.mixer, type(self.mixer), {TRAINED: None}) if trained else self.mixer
        own = {linear_in(self.get_submodule(path), path)[0]: layer for path, layer in trained.items()}  # type: ignore[attr-defined]
        student = core_site(twin(self.as_teacher(), self.attention_class, own), mixer)
        student._sides = self._sides
        return student

    def teacher_pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the attention makes of (B, N, C) with its own core."""
        return super(CoreSite, self).forward(hidden_states, *args, **kwargs)  # type: ignore[misc]

    def student_pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the attention makes of (B, N, C) with the mixer as its core."""
        return CoreSite.forward(self, hidden_states, *args, **kwargs)

    def compared(self, output: Any) -> Tensor:
        """Tokens of the image; of the text, too, where trained projections change them and the block reads them.

        Without trained projections text gives exactly what it gave.
        """
        if not self._trained():
            return super().compared(output)
        if isinstance(output, tuple):
            image, text, *_ = output  # an image prompt's part may follow
            return image if self.context_pre_only else torch.cat([image, text], 1)  # type: ignore[attr-defined]
        whole: Tensor = output
        return whole

    def trained_layers(self) -> Sequence[tuple[Any, nn.Module]]:
        """The attention's own projections, each with the trained one."""
        return [(linear_in(self.get_submodule(path))[1], layer) for path, layer in self._trained().items()]  # type: ignore[attr-defined]

    def trained_units(self) -> Iterable[nn.Module]:
        """The mixer, trained projections, and all of the attention's own layers and norms that are left in the student.

        A backward pass to what is trained asks for those: norms of queries and keys, and what text leaves by.
        """
        if next(self.mixer.parameters(), None) is None:
            return []
        trained, mass = self._trained(), self.mixer._modules.get(MASS)
        replaced = [layer for layer, _ in self.trained_layers()]
        own_layers = (m for m in self.as_teacher().modules() if next(m.parameters(recurse=False), None) is not None)
        layers = [*trained.values(), *(m for m in own_layers if not any(m is layer for layer in replaced))]
        mixer = self.as_student().mixer
        own = next(iter((mixer if mass is None else twin(mixer, type(mixer), {MASS: None})).parameters()), None)
        return [*layers, *([] if mass is None else [mass]), *([] if own is None else [self.mixer])]

    def trained_places(self) -> dict[str, tuple[str, nn.Module]]:
        """Trained projections and where they are below the site, by the paths of the attention's own."""
        return {path: (f"mixer.{TRAINED}.{_own(path)}", layer) for path, layer in self._trained().items()}

    def idle_layers(self) -> list[str]:
        """Paths of the attention's own layers that its student has no use for: projections, and the norm of keys."""
        idle = [path for path in PROJECTIONS if _has(self, path) and _is_idle(path, self, self.mixer)]
        return [*idle, "norm_k"] if "to_k" in idle else idle

    def _trained(self) -> dict[str, nn.Module]:
        """Trained projections by the paths of the attention's own; none if it has none."""
        layers = self.mixer._modules.get(TRAINED)
        return (
            {}
            if layers is None
            else {path: layers._modules[_own(path)] for path in PROJECTIONS if _own(path) in layers}
        )


def core_shell(attention: nn.Module, mixer: TokenMixer, *, train_projections: bool) -> Any:
    """The shell of an attention and the mixer in its core, which shares all of the attention's tensors.

    Args:
        attention: Frozen already.
        mixer: Changed in place: it gets the trained projections, and a learned mass where it needs one.
        train_projections: Whether copies of the attention's linear layers are trained; at a joint site the image's.

    Raises:
        ValueError: The mixer has something of its own where trained projections or a mass are to be.
    """
    give_mass(mixer, next(attention.parameters()).device)
    if train_projections:
        if TRAINED in dir(mixer):
            raise ValueError(f"{type(mixer).__name__} has a {TRAINED} of its own: rename it to train projections")
        # under other names than the attention's, which patterns of adapters look for
        there = [path for path in PROJECTIONS if _has(attention, path)]
        paths = [path for path in there if not _is_idle(path, attention, mixer)]
        layers = {_own(path): _trainable_copy(linear_in(attention.get_submodule(path))[1]) for path in paths}
        mixer.add_module(TRAINED, nn.ModuleDict(layers))
    return twin(attention, class_of(CoreShell, attention.__class__), {"mixer": mixer})


def _is_idle(path: str, attention: Any, mixer: TokenMixer) -> bool:
    """If a projection is idle: keys and values beside a feature mixer are for text, which a last block drops."""
    return isinstance(mixer, FeatureMixer) and bool(attention.context_pre_only) and path in ("to_k", "to_v")


def _has(attention: Any, path: str) -> bool:
    """Whether an attention has a projection itself, or its block has it."""
    return path.partition(".")[0] in dict(attention.named_children())


def _own(path: str) -> str:
    return "own_" + path.replace(".", "_")


def linear_in(module: nn.Module, path: str = "") -> tuple[str, Any]:
    """The linear layer that a projection is, or that adapters are wrapped around, and its path."""
    return next((f"{path}.{name}".strip("."), m) for name, m in module.named_modules() if isinstance(m, nn.Linear))


def _trainable_copy(layer: nn.Linear) -> nn.Linear:
    """In float32 at least: half precision swallows small updates."""
    kept, bias = layer.weight, layer.bias
    dtype = kept.dtype if kept.dtype == torch.float64 else torch.float32
    own = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta", dtype=dtype)
    own.weight = nn.Parameter(kept.detach().to(dtype, copy=True))
    own.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype, copy=True))
    return own
