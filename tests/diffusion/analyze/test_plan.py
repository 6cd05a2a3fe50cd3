"""Plans under a budget: against all there are, beside uniform ones, as a configuration that is trained."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blocks import NeighborhoodAttention, NoMixing, TileAttention
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.analyze.candidates import named
from sparsight.diffusion.analyze.costs import ATTENTION, Costs, flops_costs, latency_costs
from sparsight.diffusion.analyze.plan import measure_plans, plan_under, report_on
from sparsight.diffusion.analyze.run import Recording, Settings, record
from sparsight.diffusion.analyze.watched import watched
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.measure.report import replacement_report
from sparsight.diffusion.surgery.replace import replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
from sparsight.testing import relative_l2
from tests import tiny
from tests.tiny_distillation import distillation_config
from tests.tiny_rows import few

MIXERS = [partial(NeighborhoodAttention, kernel_size=3), NoMixing, partial(TileAttention, tile=2)]


def first_bucket(batch: Mapping[str, Any]) -> torch.Tensor:
    return torch.zeros(len(batch["timestep"]), dtype=torch.int64)


def recorded(denoiser: torch.nn.Module) -> tuple[Recording, Costs]:
    torch.manual_seed(3)
    levels = torch.tensor([100, 500, 900])
    labels = {"class_labels": torch.tensor([1, 2, 3])}
    given = [{"xt": torch.randn(3, 1, 8, 8), "timestep": levels, "cond": labels} for _ in range(2)]
    candidates = named(MIXERS, find_sites(denoiser))
    with watched(denoiser) as sites:
        found = record(
            denoiser,
            sites,
            given,
            candidates=candidates,
            bucket_of=first_bucket,
            settings=Settings(buckets=1),
        )
    return found, flops_costs(denoiser, found)


@pytest.fixture(scope="module")
def four_sites() -> tuple[Recording, Costs]:
    return recorded(tiny.dit(num_layers=4, num_attention_heads=4, attention_head_dim=16).eval())


def every_plan(found: Recording, costs: Costs) -> list[tuple[float, float]]:
    """Share of the cost and error of all choices there are."""
    options = [(ATTENTION, *known.mixers()) for known in found.sites.values()]
    plans = []
    for each in itertools.product(*options):
        chosen = dict(zip(found.sites, each, strict=True))
        squares = [
            found.sites[path].errors[name].prediction.square() or 0.0
            for path, name in chosen.items()
            if name != ATTENTION
        ]
        plans.append((costs.of(chosen), math.sqrt(sum(squares))))
    return plans


def test_a_plan_is_the_best_of_all_there_are_and_none_of_equal_cost_is_better(
    four_sites: tuple[Recording, Costs],
) -> None:
    found, costs = four_sites
    plans = every_plan(found, costs)
    assert len(plans) == 4**4
    least = min(cost for cost, _ in plans)
    for share in (least, *(least + part * (1 - least) for part in (0.2, 0.5, 0.8, 0.99))):
        plan = plan_under(found, costs, share, of="flops")
        assert plan.cost <= share * (1 + 1e-6)
        best = min(error for cost, error in plans if cost <= share * (1 + 1e-9))
        assert plan.error == pytest.approx(best, rel=1e-6)
        assert plan.gap == 0
    report = report_on(found, costs, (1 + least) / 2, of="flops")
    assert len(report.uniform) == 3
    for uniform, beside in report.uniform:
        assert beside.cost <= uniform.cost * (1 + 1e-6)
        assert beside.error <= uniform.error * (1 + 1e-6)
    assert any(beside.error < 0.99 * uniform.error for uniform, beside in report.uniform)


def test_costs_are_those_of_the_report_on_what_is_replaced(four_sites: tuple[Recording, Costs]) -> None:
    _, costs = four_sites
    denoiser = tiny.dit(num_layers=4, num_attention_heads=4, attention_head_dim=16)
    replace(denoiser, NoMixing, SiteSelection(include=["transformer_blocks.[12].*"]))
    told = replacement_report(denoiser)
    share = costs.of({f"transformer_blocks.{at}.attn1": "NoMixing" for at in (1, 2)})
    assert share == pytest.approx(told.flops_after / told.flops_before)
    assert costs.whole == told.flops_before


def test_what_a_plan_does_to_the_prediction_is_measured_with_all_of_it_in_place() -> None:
    denoiser = tiny.dit().eval()
    found, costs = recorded(denoiser)
    report = report_on(found, costs, 0.9, of="flops")
    labels = {"class_labels": torch.tensor([0, 4])}
    batch: dict[str, Any] = {"xt": torch.randn(2, 1, 8, 8), "timestep": torch.tensor([10, 700]), "cond": labels}
    with watched(denoiser) as sites:
        measure_plans(denoiser, sites, found, batch, report.plans)
    mixers = {path: found.sites[path].candidates[name].mixer for path, name in report.plan.chosen.items()}
    with torch.no_grad():
        wanted = denoiser(batch["xt"], batch["timestep"], **batch["cond"])[0]
        shells = replace(denoiser, lambda site: mixers[site.path], SiteSelection(include=list(mixers)))
        set_mode(shells.values(), Mode.STUDENT)
        output = denoiser(batch["xt"], batch["timestep"], **batch["cond"])[0]
    assert report.plan.measured == pytest.approx(relative_l2(output, wanted), rel=1e-4)


def test_a_plan_is_a_configuration_that_names_every_mixer(four_sites: tuple[Recording, Costs]) -> None:
    found, costs = four_sites
    report = report_on(found, costs, 0.9, of="flops")
    options = yaml.safe_load(report.config(found))["model"]["init_args"]
    assert (options["mixer"], options["sites"]) == (None, None)
    named_sites = {path: entry["mixer"]["class_path"] for entry in options["plan"] for path in entry["sites"]}
    kinds = {path: name.partition("(")[0] for path, name in report.plan.chosen.items()}
    assert {path: name.rpartition(".")[2] for path, name in named_sites.items()} == kinds
    assert "Attention stays at" in report.config(found)
    text = report.text(found)
    assert "NoMixing everywhere" in text and "none has less" in text
    json.dumps(report.as_dict(found))


def test_fit_takes_the_plan_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(distillation_config(tmp_path))
    tiles = {"class_path": "blocks.TileAttention", "init_args": {"tile": 2}}
    mixers = [{"class_path": "blocks.Merge", "init_args": {"parts": [tiles]}}, {"class_path": "blocks.NoMixing"}]
    given = ["--mixers", json.dumps(mixers), "--batches", "2", "--budget", "0.99"]
    main(["analyze", "--config", config, *given])
    folder = tmp_path / "runs" / "analysis"
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["plan"]["cost"] <= 0.99 and plan["plan"]["measured"] > 0
    said = capsys.readouterr().out
    assert said.endswith(f"Next:\n  sparsight fit --config {config} --config {folder / 'plan.yaml'}\n")
    assert (folder / "plan.png").is_file()
    ended = main(["fit", "--config", config, "--config", str(folder / "plan.yaml"), "--trainer.logger", "false"])
    chosen = {path: name.partition("(")[0] for path, name in plan["plan"]["sites"].items() if name}
    assert chosen and "NoMixing" not in chosen.values(), (
        "the case without parameters, for which projections are trained"
    )
    assert {path: type(shell.mixer).__name__ for path, shell in ended.model.shells.items()} == chosen


@pytest.mark.parametrize("make", few([tiny.pixart, tiny.sd3, tiny.unet], tiny.sd3))
def test_times_are_measured_once_for_sites_that_are_alike(make: Any) -> None:
    denoiser = make().eval()
    cond = example_inputs(denoiser, batch=2)
    sample = cond.pop("sample") if "sample" in cond else cond.pop("hidden_states")
    batch = {"xt": sample, "timestep": torch.tensor([10, 700]), "cond": cond}
    del cond["timestep"]
    candidates, given = named([NoMixing], find_sites(denoiser)), [batch, batch]
    with watched(denoiser) as sites:
        found = record(
            denoiser, sites, given, candidates=candidates, bucket_of=first_bucket, settings=Settings(buckets=1)
        )
        costs = latency_costs(denoiser, sites, found, batch, torch.device("cpu"), processor=True)
        with pytest.raises(ConfigurationError, match="processor tells nothing of work on cuda"):
            latency_costs(denoiser, sites, found, batch, torch.device("cuda"), processor=True)
    first, second, *_ = costs.sites.values()
    assert first == second and first.keys() == {ATTENTION, "NoMixing"}
    assert min(*first.values(), costs.whole) > 0


def test_a_budget_that_no_choice_keeps_is_refused(four_sites: tuple[Recording, Costs]) -> None:
    message = (
        r"budget is 0.01, but the cheapest choice of these mixers costs 0\.\d+ of the denoiser's FLOPs: give at least"
    )
    with pytest.raises(ConfigurationError, match=message):
        plan_under(*four_sites, 0.01, of="flops")


def test_unmeasured_effects_are_refused() -> None:
    denoiser = tiny.dit().eval()
    found, costs = recorded(denoiser)
    known = next(iter(found.sites.values()))
    known.errors["NoMixing"] = type(known.errors["NoMixing"]).empty(1)
    with pytest.raises(ConfigurationError, match="set prediction_batches to 1 or more"):
        plan_under(found, costs, 0.9, of="flops")
