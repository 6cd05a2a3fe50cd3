"""What might stand at a site in the attention's place: mixers that are asked for, and two that anything must beat.

Shape legend: B batch, h heads, N tokens, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import CoreMixer, Grid, Site, SiteSamples, TokenMixer
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.sharding import own_class
from sparsight.diffusion.surgery.core_site import CoreSite, class_of, twin
from sparsight.diffusion.surgery.joint import give_mass, is_core
from sparsight.diffusion.surgery.place import make_student
from sparsight.diffusion.surgery.shell import Shell
from sparsight.diffusion.surgery.sites import refuse_unsupported
from sparsight.diffusion.train.start import start_from_teacher

Factory = Callable[[Site], TokenMixer]
Candidates = Mapping[str, Factory | Mapping[str, Factory | Shell]]
"""By name, what makes a mixer for any site; or by site, what makes it, or a shell whose mixer has been trained."""


class MeanOfValues(CoreMixer):
    """Every query gets the mean of all values: attention that knows no difference between keys."""

    served_axes = (1, 2, 3)

    def flops(self, grid: Grid) -> int:
        """None: means are not counted."""
        return 0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """The mean of (B, h, N, d) over tokens, for each of them."""
        return v.mean(2, keepdim=True).expand_as(v)


class OwnValue(CoreMixer):
    """Every query gets its own value: attention of each token to itself."""

    served_axes = (1, 2, 3)

    def flops(self, grid: Grid) -> int:
        """None: nothing is computed."""
        return 0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, scale: float) -> Tensor:
        """The values (B, h, N, d)."""
        return v


BASELINES: Mapping[str, Factory] = {"mean of v": MeanOfValues, "identity": OwnValue}
"""They are measured beside the mixers, and are in no plan."""
MEAN = "mean of v"


class CandidateSite(CoreSite):
    """An attention with a candidate for its core, which keeps what that made of it.

    Attributes:
        mixed: (B, h, tokens, d), in front of the last projection, text included.
    """

    mixed: Tensor | None = None

    def core(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, hidden_states: Tensor) -> Tensor:
        """What the mixer makes of (B, h, tokens, d)."""
        self.mixed = super().core(q, k, v, scale, hidden_states)
        return self.mixed


@dataclass
class Candidate:
    """A mixer at one site.

    Attributes:
        name: As in tables.
        mixer: Started from the teacher; none if it cannot stand there.
        student: What stands there with it, of the attention's signature.
        refusal: Why it cannot.
        started: Whether it is as it will be measured.
    """

    name: str
    mixer: Any = None
    student: Any = None
    refusal: str = ""
    started: bool = field(default=False, repr=False)

    @property
    def is_baseline(self) -> bool:
        """Whether it is there to be beaten alone."""
        return self.name in BASELINES

    def refuse(self, why: str) -> None:
        """It cannot stand there; what it holds is let go."""
        self.mixer = self.student = None
        self.refusal = why

    def start(self, attention: nn.Module, samples: Sequence[SiteSamples]) -> None:
        """Let the mixer start from the teacher, unless it has been trained."""
        if self.started or self.mixer is None:
            return
        self.started = True
        try:
            start_from_teacher(self.mixer, attention, samples)  # some are fitted to it
        except ValueError as error:
            self.refuse(str(error))
            return
        self.mixer.requires_grad_(False)


def candidate_at(name: str, made: Factory | Shell, site: Site, attention: Any) -> Candidate:
    """What stands at a site with a mixer.

    Args:
        name: Of the candidate.
        made: What makes a mixer; or the shell of one that is ready, and is measured as it is.
        site: Where.
        attention: That stands there; stays as it is.
    """
    if isinstance(made, Shell):
        return Candidate(name, made.mixer, made.as_student(), started=True)
    found = Candidate(name)
    try:
        mixer: Any = made(site)
        if not isinstance(mixer, TokenMixer):
            raise ConfigurationError(f"{type(mixer).__name__} is no token mixer: name one of `sparsight list mixers`")
        refuse_unsupported(site.path, attention, mixer, train_projections=False)
        mixer = mixer.to(next(attention.parameters()).device).eval()
        give_mass(mixer, next(attention.parameters()).device)
    except ConfigurationError:
        raise
    except ValueError as error:
        found.refuse(str(error))
        return found
    found.mixer = mixer
    if is_core(mixer):
        found.student = twin(attention, class_of(CandidateSite, attention.__class__), {"mixer": mixer})
    else:
        found.student = make_student(attention, mixer)
    return found


def named(factories: Iterable[Factory], sites: Sequence[Site]) -> dict[str, Factory]:
    """Factories by short names that tell them apart: the class, and options that are not its defaults.

    Raises:
        ConfigurationError: Two are equal.
    """
    found: dict[str, Factory] = {}
    for factory in factories:
        name = _name(factory, sites)
        if name in found or name in BASELINES:
            raise ConfigurationError(f"mixers holds {name} twice: name each candidate once")
        found[name] = factory
    return found


def _name(factory: Factory, sites: Sequence[Site]) -> str:
    """By the first site that it can stand at."""
    for site in sites:
        try:
            with torch.device("meta"):
                return label(factory(site))
        except ValueError:
            continue
    raise ConfigurationError(f"{factory} makes a mixer for none of the {len(sites)} sites")


def label(mixer: TokenMixer) -> str:
    """A mixer in a few words: its class, and its options but for those that have their defaults."""
    kind = own_class(mixer)
    try:
        with torch.device("meta"):
            plain = kind(mixer.site).options
    except (TypeError, ValueError):  # options that must be given
        plain = {}
    other = {name: value for name, value in mixer.options.items() if plain.get(name) != value}
    return f"{kind.__name__}({', '.join(f'{name}={_short(value)}' for name, value in other.items())})".removesuffix(
        "()"
    )


def _short(value: Any) -> str:
    """Plain data, with classes by their bare names."""
    if isinstance(value, Mapping) and "class_path" in value:
        inside = ", ".join(f"{name}={_short(item)}" for name, item in (value.get("init_args") or {}).items())
        return f"{str(value['class_path']).rpartition('.')[2]}({inside})".removesuffix("()")
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, int) for item in value):
        return "x".join(map(str, value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)
