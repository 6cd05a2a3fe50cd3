"""The choice under a budget against all choices there are."""

from __future__ import annotations

import itertools
import random

import pytest

from sparsight.diffusion.analyze.knapsack import Option, cheapest, choose


def problem(seed: int, *, whole: bool, groups: int = 5) -> list[list[Option]]:
    draw = random.Random(seed)

    def number() -> float:
        return float(draw.randint(1, 9)) if whole else draw.uniform(0.5, 9)

    return [[(number(), number()) for _ in range(draw.randint(1, 5))] for _ in range(groups)]


def best_of_all(groups: list[list[Option]], budget: float) -> float:
    every = itertools.product(*groups)
    return min(sum(loss for _, loss in each) for each in every if sum(cost for cost, _ in each) <= budget + 1e-9)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_no_choice_within_the_budget_is_better(seed: int, whole: bool) -> None:
    groups = problem(seed, whole=whole)
    low, high = cheapest(groups), sum(max(cost for cost, _ in group) for group in groups)
    for share in (0, 0.1, 0.35, 0.6, 0.9, 1):
        budget = low + share * (high - low)
        found = choose(groups, budget)
        taken = [group[at] for group, at in zip(groups, found.options, strict=True)]
        assert found.cost == pytest.approx(sum(cost for cost, _ in taken))
        assert found.cost <= budget + 1e-6
        assert found.loss == pytest.approx(sum(loss for _, loss in taken)) == best_of_all(groups, budget)
        assert found.gap == 0


def test_a_gap_is_told_where_sums_were_left_out_and_it_holds() -> None:
    gaps = []
    for seed in range(20):
        groups = problem(seed, whole=False, groups=7)
        budget = 1.5 * cheapest(groups)
        found = choose(groups, budget, most=1)
        least = best_of_all(groups, budget)
        assert least <= found.loss + 1e-9
        assert found.loss - found.gap <= least + 1e-6
        gaps.append(found.gap)
    assert max(gaps) > 0


def test_many_sites_are_settled_at_once() -> None:
    """As many sites and mixers as SDXL with eight mixers, in two shapes."""
    draw = random.Random(0)
    costs = [[float(draw.randint(10, 100)) for _ in range(9)] for _ in range(2)]
    groups = [[(cost, draw.expovariate(1) * 50 / cost) for cost in costs[site > 9]] for site in range(70)]
    low, high = cheapest(groups), sum(max(cost for cost, _ in group) for group in groups)
    found = choose(groups, (low + high) / 2)
    assert found.gap == 0
    for option in range(9):
        alike = [group[option] for group in groups]
        cost, loss = map(sum, zip(*alike, strict=True))
        assert choose(groups, cost).loss <= loss + 1e-9


def test_a_budget_that_nothing_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest choice costs 3, more than 2"):
        choose([[(1.0, 5.0)], [(2.0, 1.0), (4.0, 0.0)]], 2.0)
