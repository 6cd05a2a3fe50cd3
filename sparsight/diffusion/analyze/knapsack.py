"""One option for each of several groups, at the least loss within a budget: the multiple-choice knapsack problem.

Solved exactly: group by group, all sums that no other one beats in both cost and loss are kept, but for those whose
bound says that they cannot end below what is known already. The bound is the problem's linear relaxation, in which two
options may be mixed (Sinha and Zoltners, Operations Research 27:503, 1979). Where too many sums are left, the most
promising are kept, and a gap is told: the best there could be is not lower than that.

Shape legend: S sums, P points of a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MOST = 200_000
"""Sums that are kept at a time."""
_SLACK = 1e-9  # relative: sums in another order differ by rounding
Numbers = NDArray[np.float64]
Option = tuple[float, float]
"""Cost and loss."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        options: Position of the option in each group.
        cost: Their sum.
        loss: Their sum.
        gap: How much lower the least loss might be; 0 where it is proven to be the least.
    """

    options: tuple[int, ...]
    cost: float
    loss: float
    gap: float = 0.0


def cheapest(groups: Sequence[Sequence[Option]]) -> float:
    """The least that any choice costs."""
    return sum(min(cost for cost, _ in group) for group in groups)


def choose(groups: Sequence[Sequence[Option]], budget: float, *, most: int = MOST) -> Choice:
    """The choice of least loss among those that cost no more than the budget; of equal ones, the cheaper.

    Args:
        groups: Options of each group.
        budget: Most that they may cost together.
        most: Sums that are kept at a time.

    Raises:
        ValueError: The cheapest choice costs more.
    """
    if cheapest(groups) > budget * (1 + _SLACK):
        raise ValueError(f"the cheapest choice costs {cheapest(groups):g}, more than {budget:g}")
    budget = budget * (1 + _SLACK)
    kept = [_unbeaten(group) for group in groups]
    bounds = [_Bound(kept[position:]) for position in range(len(kept) + 1)]
    known = _greedy(kept, budget)
    limit = sum(group[at][1] for group, at in zip(kept, known, strict=True))
    limit += _SLACK * max(abs(limit), sum(abs(loss) for group in kept for _, loss in group) * 1e-6)
    costs, losses, steps = np.zeros(1), np.zeros(1), []
    missed = np.inf
    for group, bound in zip(kept, bounds[1:], strict=True):
        options = np.array(group)
        cost_S = (costs[:, None] + options[:, 0]).ravel()
        loss_S = (losses[:, None] + options[:, 1]).ravel()
        least_S = loss_S + bound.at(budget - cost_S)
        order = np.flatnonzero(least_S <= limit)
        order = order[np.lexsort((loss_S[order], cost_S[order]))]
        before = np.minimum.accumulate(loss_S[order])
        order = order[np.r_[True, loss_S[order][1:] < before[:-1]]] if len(order) else order
        if len(order) > most:
            ranked = order[np.argsort(least_S[order], kind="stable")]
            missed = min(missed, float(least_S[ranked[most]]))
            order = np.sort(ranked[:most])
            order = order[np.argsort(cost_S[order], kind="stable")]
        costs, losses = cost_S[order], loss_S[order]
        steps.append((order // len(group), order % len(group)))
    chosen = _traced(steps, int(losses.argmin())) if len(losses) else known
    loss = sum(group[at][1] for group, at in zip(kept, chosen, strict=True))
    picked = tuple(_position(every, group[at]) for every, group, at in zip(groups, kept, chosen, strict=True))
    cost = sum(every[at][0] for every, at in zip(groups, picked, strict=True))
    return Choice(picked, cost, loss, max(0.0, loss - missed) if missed < loss else 0.0)


def _position(every: Sequence[Option], option: Option) -> int:
    return next(at for at, each in enumerate(every) if tuple(each) == tuple(option))


def _unbeaten(group: Sequence[Option]) -> list[Option]:
    """Options that no other one beats in both cost and loss, the cheapest first."""
    found: list[Option] = []
    for cost, loss in sorted(group):
        if not found or loss < found[-1][1]:
            found.append((cost, loss))
    return found


def _hull(group: Sequence[Option]) -> list[Option]:
    """Those of them that no mixture of two others beats."""
    found: list[Option] = []
    for point in group:
        while len(found) > 1 and _is_above(found[-2], found[-1], point):
            found.pop()
        found.append(point)
    return found


def _is_above(one: Option, middle: Option, other: Option) -> bool:
    """Whether a point is on or above the line between its neighbours."""
    return (middle[1] - one[1]) * (other[0] - one[0]) >= (other[1] - one[1]) * (middle[0] - one[0])


class _Bound:
    """The least loss of some groups for any budget, if options could be mixed."""

    def __init__(self, groups: Sequence[Sequence[Option]]) -> None:
        hulls = [_hull(group) for group in groups]
        steps = [(right[0] - left[0], right[1] - left[1]) for hull in hulls for left, right in pairwise(hull)]
        steps.sort(key=lambda step: step[1] / step[0])
        first = [(sum(hull[0][0] for hull in hulls), sum(hull[0][1] for hull in hulls))]
        self.cost_P, self.loss_P = np.cumsum(np.array(first + steps), axis=0).T

    def at(self, budget_S: Numbers) -> Numbers:
        """The bound for each budget; infinite where not even the cheapest options fit."""
        found = np.interp(budget_S, self.cost_P, self.loss_P)
        return np.where(budget_S < self.cost_P[0] - _SLACK * abs(self.cost_P[0]), np.inf, found)


def _greedy(groups: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """A good choice: from the cheapest options on, whatever saves most for its cost and still fits."""
    chosen = [0] * len(groups)
    left = budget - sum(group[0][0] for group in groups)
    while True:
        found: tuple[float, int, int] | None = None
        for number, (group, at) in enumerate(zip(groups, chosen, strict=True)):
            for other in range(at + 1, len(group)):
                more, less = group[other][0] - group[at][0], group[at][1] - group[other][1]
                if more <= left and (found is None or less / more > found[0]):
                    found = (less / more, number, other)
        if found is None:
            return chosen
        _, number, other = found
        left -= groups[number][other][0] - groups[number][chosen[number]][0]
        chosen[number] = other


def _traced(steps: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], last: int) -> list[int]:
    chosen = []
    for parents, options in reversed(steps):
        chosen.append(int(options[last]))
        last = int(parents[last])
    return chosen[::-1]
