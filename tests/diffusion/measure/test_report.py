"""The report of what was replaced."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import partial

import pytest

from blocks import DeltaConvBlock, NeighborhoodAttention, SoftmaxAttention
from sparsight.diffusion.measure.report import replacement_report
from sparsight.diffusion.surgery.replace import finalize, replace
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
from tests import tiny


def parameters(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_parameters_are_those_of_teacher_and_student(family: str) -> None:
    denoiser = tiny.FAMILIES[family]()
    whole, attentions = parameters(denoiser), {s.path: s for s in find_sites(denoiser)}
    first = {path: parameters(denoiser.get_submodule(path)) for path in attentions}
    shells = replace(denoiser, partial(DeltaConvBlock, kernel_size=3), SiteSelection(exclude=[next(iter(attentions))]))
    report = replacement_report(denoiser)
    assert [site.path for site in report.sites] == list(shells)
    assert report.kept == 1
    for site in report.sites:
        expected = attentions[site.path]
        assert (site.heads, site.channels, site.tokens) == (expected.heads, expected.channels, expected.grid.tokens)
        assert site.parameters_before == first[site.path]
        assert site.parameters_after == parameters(shells[site.path].student)
        assert site.mixer == "DeltaConvBlock"
    finalize(denoiser)
    assert (report.parameters_before, report.parameters_after) == (whole, parameters(denoiser))
    assert report.flops_after == report.flops_after_counted < report.flops_before
    assert replacement_report(denoiser) == report  # the teachers are gone, and nothing was forgotten


def test_softmax_attention_changes_no_number() -> None:
    denoiser = tiny.pixart()
    replace(denoiser, SoftmaxAttention)
    report = replacement_report(denoiser)
    assert report.parameters_after == report.parameters_before
    assert report.flops_after == report.flops_before == report.flops_after_counted
    assert "has as many parameters and takes as many" in " ".join(report.text().split())


def test_text_csv_and_json_hold_every_site_and_the_totals() -> None:
    denoiser = tiny.dit()
    replace(denoiser, partial(NeighborhoodAttention, kernel_size=3))
    report = replacement_report(denoiser, size=(16, 16))
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert [row["path"] for row in rows] == [*(s.path for s in report.sites), "all replaced sites", "whole denoiser"]
    assert rows[0]["tokens"] == "64"
    assert int(rows[-2]["flops_after"]) == sum(int(row["flops_after"]) for row in rows[:-2])
    assert json.loads(report.json())["sites"][1]["flops_after"] == report.sites[1].flops_after
    text = report.text()
    assert "all replaced sites" in text and "whole denoiser" in text and "NeighborhoodAttention" in text
    assert "as it is run" in text  # the dense reference form costs more than its formula
    assert report.flops_after_counted > report.flops_after


def test_an_untouched_denoiser_is_refused() -> None:
    with pytest.raises(ValueError, match="no mixers; replace"):
        replacement_report(tiny.dit())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_table_has_a_row_for_sites_that_are_alike_and_fits_a_terminal(family: str) -> None:
    denoiser = tiny.FAMILIES[family]()
    replace(denoiser, partial(DeltaConvBlock, kernel_size=3))
    report = replacement_report(denoiser)
    lines = report.text().splitlines()
    assert max(map(len, lines)) <= 80
    rows = lines[2 : next(n for n, line in enumerate(lines) if line.startswith("all replaced sites"))]
    assert sum(int(found[1]) if (found := re.search(r"\((\d+)\)  ", row)) else 1 for row in rows) == len(report.sites)
    assert len({re.split("  +", row)[0] for row in rows}) == len(rows), "rows cannot be told apart"
