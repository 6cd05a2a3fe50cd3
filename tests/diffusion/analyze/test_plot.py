"""Pictures of an analysis: names of sites, colours, and that every panel has what it should show."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.image import imread

from blocks import NoMixing
from sparsight.diffusion.analyze.analysis import Analysis
from sparsight.diffusion.analyze.candidates import named
from sparsight.diffusion.analyze.costs import flops_costs
from sparsight.diffusion.analyze.plan import report_on
from sparsight.diffusion.analyze.plan_plot import plot_plan
from sparsight.diffusion.analyze.plot import plot_decay, plot_errors, plot_maps
from sparsight.diffusion.analyze.run import Settings, record
from sparsight.diffusion.analyze.watched import watched
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.sites import find_sites
from tests.tiny_sd3 import sd35


def test_pictures_of_a_joint_model_are_drawn(tmp_path: Path) -> None:
    denoiser = sd35()
    cond = example_inputs(denoiser, batch=2)
    sample = cond.pop("hidden_states")
    levels = cond.pop("timestep")
    batch = {"xt": sample, "timestep": levels, "cond": cond}
    candidates = named([NoMixing], find_sites(denoiser))
    with watched(denoiser) as sites:
        found = record(
            denoiser,
            sites,
            [batch, batch],
            candidates=candidates,
            bucket_of=lambda batch: torch.tensor([0, 2]),
            settings=Settings(buckets=3),
        )
        costs = flops_costs(denoiser, found)
    analysis = Analysis(found, {"model": "tiny"})
    drawn = {"attention.png": plot_maps, "decay.png": plot_decay, "mixers.png": plot_errors}
    for name, plot in drawn.items():
        plot(analysis, tmp_path / name)
    report = report_on(found, costs, 0.999, of="flops")
    plot_plan(report, found, tmp_path / "plan.png", title="tiny")
    for name in (*drawn, "plan.png"):
        pixels = imread(tmp_path / name)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 800
        assert len({tuple(pixel) for pixel in pixels[::7, ::7, :3].reshape(-1, 3).round(1).tolist()}) > 5
    assert all(row["text_share"] is not None for row in analysis.head_rows() if str(row["site"]).endswith(".attn"))
    assert {row["levels"] for row in analysis.head_rows()} == {"0-0.333", "0.667-1"}, "an empty bucket has no rows"
