"""Which mixer stands at which site under a budget, and which sites keep attention.

The squared errors of the prediction, each measured with one site changed, are added up over the sites: as if errors of
different sites had nothing to do with each other. What a whole plan does to the prediction is measured as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import torch
from torch import nn

from sparsight.common.errors import ConfigurationError
from sparsight.common.tables import WIDTH, format_table
from sparsight.diffusion.analyze.costs import ATTENTION, CALLED, BudgetOf, Costs
from sparsight.diffusion.analyze.errors import ErrorSums
from sparsight.diffusion.analyze.knapsack import Option, choose
from sparsight.diffusion.analyze.run import Noised, Recording, standing_in
from sparsight.diffusion.analyze.watched import WatchedSite
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.surgery.record import plan_config, record_of_mixers
from sparsight.diffusion.surgery.training_free import learns_little

ERRORS = (
    "Errors are relative L2 errors of the prediction before training: by single sites, and measured with all of a plan "
    "in place on a further batch."
)
Chosen = Mapping[str, str]
"""Candidates by path; sites that keep attention are not in it."""


@dataclass
class Plan:
    """Candidates at sites.

    Attributes:
        name: In tables.
        chosen: Which stands where.
        cost: Over that of the untouched denoiser.
        error: Relative L2 error of the prediction, as errors of single sites foretell it.
        gap: How much lower that might be with another choice of this cost; 0 where it is proven to be the lowest.
        measured: Relative L2 error of the prediction with all of it in place, on a batch that was not used for it.
    """

    name: str
    chosen: Chosen
    cost: float
    error: float
    gap: float = 0.0
    measured: float | None = None


def plan_under(found: Recording, costs: Costs, share: float, *, of: BudgetOf, name: str = "plan") -> Plan:
    """The plan of least error whose denoiser costs at most ``share`` of the untouched one.

    Raises:
        ConfigurationError: No plan is so cheap, or the effects on the prediction were not measured.
    """
    check_share(costs, share, of=of)
    groups, names = groups_of(found, costs)
    budget = share * costs.whole - costs.around
    choice = choose(groups, budget)
    picked = {path: names[path][at] for path, at in zip(found.sites, choice.options, strict=True)}
    chosen = {path: name for path, name in picked.items() if name != ATTENTION}
    error = math.sqrt(max(0.0, choice.loss))
    return Plan(name, chosen, costs.of(chosen), error, error - math.sqrt(max(0.0, choice.loss - choice.gap)))


def check_share(costs: Costs, share: float, *, of: BudgetOf) -> None:
    """See that some choice costs at most this share of the untouched denoiser.

    Raises:
        ConfigurationError: None does.
    """
    if costs.least > share * (1 + 1e-9):
        raise ConfigurationError(
            f"budget is {share:g}, but the cheapest choice of these mixers costs {costs.least:.3f} of the denoiser's "
            f"{CALLED[of]}: give at least {math.ceil(costs.least * 1000) / 1000:g}, or cheaper mixers"
        )


def uniform_plans(found: Recording, costs: Costs) -> list[Plan]:
    """Every candidate wherever it can stand."""
    plans = []
    for name in found.names:
        chosen = {path: name for path, known in found.sites.items() if name in known.names()}
        if chosen:
            squares = [found.sites[path].errors[name].prediction.square() or 0.0 for path in chosen]
            plans.append(Plan(f"{name} everywhere", chosen, costs.of(chosen), math.sqrt(sum(squares))))
    return plans


@torch.no_grad()
def measure_plans(
    denoiser: nn.Module,
    sites: Mapping[str, WatchedSite],
    found: Recording,
    batch: Noised,
    plans: list[Plan],
) -> None:
    """Put every plan in place, and write down what it does to the prediction on a batch."""

    def predicted() -> torch.Tensor:
        return predict(denoiser, batch["xt"], batch["timestep"], batch["cond"])

    wanted = predicted()
    for plan in plans:
        errors = ErrorSums(1)
        with standing_in(sites, {path: found.sites[path].candidates[name] for path, name in plan.chosen.items()}):
            errors.add(predicted(), wanted, torch.zeros(len(wanted), dtype=torch.int64))
        plan.measured = errors.relative()


def groups_of(found: Recording, costs: Costs) -> tuple[list[list[Option]], dict[str, list[str]]]:
    """Cost and squared error of what can stand at each site, attention first, and the names of these by path.

    Raises:
        ConfigurationError: The effects on the prediction were not measured.
    """
    groups, names = [], {}
    for path, known in found.sites.items():
        options: list[Option] = [(costs.sites[path][ATTENTION], 0.0)]
        names[path] = [ATTENTION]
        for name in known.mixers():
            square = known.errors[name].prediction.square()
            if square is None:
                raise ConfigurationError(
                    "a budget needs what mixers do to the prediction: set prediction_batches to 1 or more"
                )
            if math.isfinite(square):
                options.append((costs.sites[path][name], square))
                names[path].append(name)
        groups.append(options)
    return groups, names


@dataclass(frozen=True)
class PlanReport:
    """A plan beside every candidate everywhere, and beside the plans that cost as much as these.

    Attributes:
        plan: Under the budget.
        uniform: Each with the plan of its cost.
        budget: Share of the untouched denoiser's cost.
        of: What is counted.
        costs: Of everything.
    """

    plan: Plan
    uniform: list[tuple[Plan, Plan]]
    budget: float
    of: BudgetOf
    costs: Costs

    @property
    def plans(self) -> list[Plan]:
        """All of them."""
        return [self.plan, *(plan for pair in self.uniform for plan in pair)]

    def as_dict(self, found: Recording) -> dict[str, Any]:
        """Plain data."""
        return {
            "budget": self.budget,
            "of": self.of,
            "whole": self.costs.whole,
            "costs": self.costs.sites,
            "plan": _plain(self.plan, found),
            "uniform": [
                _plain(plan, found) | {"plan_of_equal_cost": _plain(beside, found)} for plan, beside in self.uniform
            ],
        }

    def config(self, found: Recording) -> str:
        """YAML that, laid over the configuration of a distillation, makes it that of the plan."""
        mixers = {path: found.sites[path].candidates[name].mixer for path, name in self.plan.chosen.items()}
        kept = [path for path in found.sites if path not in mixers]
        lines = [
            f"{self.plan.cost:.1%} of the untouched denoiser's {CALLED[self.of]}; budget {self.budget:.1%}.",
            f"Relative L2 error of the prediction before training: {self.plan.error:.3g} by single sites.",
            f"Attention stays at {', '.join(kept) or 'no site'}.",
            "sparsight fit --config EXPERIMENT --config THIS_FILE",
        ]
        others: dict[str, Any] = {}
        if all(learns_little(mixer) for mixer in mixers.values()):
            lines.append("These mixers have hardly any parameters: the projections around them are trained.")
            others["trained"] = {"projections": True}
        return "".join(f"# {line}\n" for line in lines) + plan_config(record_of_mixers(mixers), **others)

    def text(self, found: Recording) -> str:
        """What stands where, and how the plan compares."""
        counts: dict[str, int] = {}
        for path in found.sites:
            name = self.plan.chosen.get(path, ATTENTION)
            counts[name] = counts.get(name, 0) + 1
        listed = ", ".join(f"{name} at {count}" for name, count in counts.items())
        gap = f"at most {self.plan.gap:.2g} above the least" if self.plan.gap else "none has less"
        rows = [_line(self.plan)]
        for plan, beside in self.uniform:
            rows += [_line(plan), _line(beside)]
        return "\n".join(
            [
                fill(f"Plan under {self.budget:.1%} of the {CALLED[self.of]}: {listed}.", WIDTH),
                fill(
                    f"Its error by single sites is {self.plan.error:.3g}; of choices within the budget, {gap}.", WIDTH
                ),
                "",
                format_table(rows, width=WIDTH),
                fill(ERRORS, WIDTH),
            ]
        )


def report_on(found: Recording, costs: Costs, share: float, *, of: BudgetOf) -> PlanReport:
    """The plan under a budget beside uniform choices; nothing is measured yet.

    Raises:
        ConfigurationError: As ``plan_under``.
    """
    plan = plan_under(found, costs, share, of=of)
    beside: Callable[[Plan], Plan] = lambda uniform: plan_under(  # noqa: E731
        found, costs, uniform.cost, of=of, name="  plan of that cost"
    )
    uniform = [(each, beside(each)) for each in uniform_plans(found, costs) if math.isfinite(each.error)]
    return PlanReport(plan, uniform, share, of, costs)


def _plain(plan: Plan, found: Recording) -> dict[str, Any]:
    sites = {path: plan.chosen.get(path) for path in found.sites}
    return {name: value for name, value in vars(plan).items() if name != "chosen"} | {"sites": sites}


def _line(plan: Plan) -> dict[str, object]:
    measured = "-" if plan.measured is None else f"{plan.measured:.3g}"
    return {"plan": plan.name, "cost": f"{plan.cost:.1%}", "error": f"{plan.error:.3g}", "measured": measured}
