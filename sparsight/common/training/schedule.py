"""How many sites are retired after each optimiser step: the same for attention that is replaced and layers that go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from sparsight.common.errors import ConfigurationError

Shape = Literal["one_shot", "linear", "cubic", "exponential"]
EXPONENTIAL_RATE = 5.0  # all but e^-5 of the way would be left undone without the normalisation


class Placed(Protocol):
    """What knows where sites are."""

    def sites(self) -> list[str]:
        """Names of all sites that can be retired, in the order of the model."""
        ...

    def distance(self, one: str, other: str) -> int:
        """How many places two sites are apart in the model; 1 for neighbours."""
        ...


@runtime_checkable
class Prunable(Placed, Protocol):
    """What a LightningModule gives so that a schedule can retire its sites one after the other."""

    scores_before_training: bool  # whether ``score`` knows something before the first optimiser step

    def score(self) -> dict[str, float]:
        """What retiring each site costs, in any unit; the cheapest go first. Equal on all processes."""
        ...

    def retire(self, names: Sequence[str]) -> None:
        """Let exactly these sites be retired; all others work as before."""
        ...


@runtime_checkable
class Retiring(Protocol):
    """A callback that retires sites of a module."""

    retired: Sequence[str]
    """Those that are retired, in that order."""


@dataclass(frozen=True)
class Schedule:
    """A number of retired sites for every optimiser step: none before ``begin``, all from ``end`` on.

    In between, with t from 0 to 1, their share is t (``linear``), 1 - (1 - t)^3 (``cubic``; Zhu and Gupta, arXiv
    1710.01878) or (1 - e^-5t) / (1 - e^-5) (``exponential``): many early, while there is time to recover, and few late.

    Args:
        shape: ``one_shot`` retires all at ``begin``, the others as above.
        begin: First step with the schedule at work.
        end: Step from which all are retired; ignored by ``one_shot``.

    Raises:
        ValueError: Unknown shape, or steps out of order.
    """

    shape: Shape
    begin: int
    end: int

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape is one of {', '.join(get_args(Shape))}; got {self.shape!r}")
        if self.begin < 0 or (self.shape != "one_shot" and self.end <= self.begin):
            raise ValueError(f"a {self.shape} schedule needs 0 <= begin < end; got begin={self.begin}, end={self.end}")

    def __call__(self, step: int, total: int) -> int:
        """Sites, of ``total``, that are retired while ``step`` (counted from 0) is trained."""
        if step < self.begin:
            return 0
        if self.shape == "one_shot" or step >= self.end:
            return total
        t = (step - self.begin) / (self.end - self.begin)
        shares = {
            "linear": t,
            "cubic": 1 - (1 - t) ** 3,
            "exponential": math.expm1(-EXPONENTIAL_RATE * t) / math.expm1(-EXPONENTIAL_RATE),
        }
        return math.floor(shares[self.shape] * total + 1e-9)


def in_order(sites: Sequence[str], order: str | Sequence[str], scores: Mapping[str, float] | None) -> list[str]:
    """Sites in the order in which they go.

    Args:
        sites: Names in the order of the model.
        order: ``first``, ``last``, ``score`` (cheapest first; equal scores in the order of the model), or the names.
        scores: For ``score``.
    """
    if order == "score":
        assert scores is not None
        return sorted(sites, key=lambda name: scores[name])
    if isinstance(order, str):
        return list(sites) if order == "first" else list(reversed(sites))
    return list(order)


def room(names: Sequence[str], *, spacing: int, module: Placed) -> int:
    """How many of some sites can go if these keep their distance; arguments as those of ``spaced``."""
    found: list[str] = []
    for name in module.sites():  # on a line, taking whatever comes first leaves most
        if name in names and (not found or module.distance(found[-1], name) >= spacing):
            found.append(name)
    return len(found)


def spaced(
    order: Sequence[str], count: int, *, rest: int = 0, taken: Sequence[str], spacing: int, module: Placed
) -> list[str]:
    """The first ``count`` sites of an order that keep their distance, and leave room for the rest to keep it too.

    Args:
        order: Sites that may be taken, best first.
        count: How many are wanted now.
        rest: How many more of them will be wanted later.
        taken: Sites that were taken before.
        spacing: Least distance of two sites; 1 lets neighbours go.
        module: Knows the distances.

    Raises:
        ConfigurationError: There is no room for that many.
    """

    def apart(names: Sequence[str], other: str) -> list[str]:
        return [name for name in names if module.distance(name, other) >= spacing]

    free = [name for name in module.sites() if name in order]
    for name in taken:
        free = apart(free, name)
    most = room(free, spacing=spacing, module=module)
    if most < count + rest:
        raise ConfigurationError(
            f"spacing {spacing} leaves room for {len(taken) + most} of {len(taken) + count + rest}: lower "
            "one of spacing and amount"
        )
    chosen: list[str] = []
    for name in order:
        left = apart(free, name)
        if (
            len(chosen) < count
            and name in free
            and room(left, spacing=spacing, module=module) >= count + rest - len(chosen) - 1
        ):
            chosen.append(name)
            free = left
    return chosen
