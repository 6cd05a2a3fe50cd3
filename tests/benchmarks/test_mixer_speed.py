"""FLOPs of mixers at the sites of published models: attention saves nothing, and nobody saves more than the limit."""

from __future__ import annotations

import pytest

from benchmarks.mixer_speed import MODELS, flops_rows, timed_row

TITLE = "DiT-XL/2, 512"


def test_attention_saves_nothing_and_no_core_more_than_all_of_it() -> None:
    core, site, attention, focal, delta_conv = flops_rows([TITLE], ["attention", "focal", "delta_conv_default"])
    assert attention[TITLE] == "1.00x" and attention["exponent"] == "2.00"
    gains = [float(row[TITLE].rstrip("x")) for row in (attention, focal, core)]
    assert gains == sorted(gains) and gains[1] > 1
    assert gains[2] < float(delta_conv[TITLE].rstrip("x")) < float(site[TITLE].rstrip("x"))
    assert delta_conv["exponent"] == "1.00"


def test_cores_are_timed_and_mixers_of_features_are_not() -> None:
    row = timed_row("focal", sides=[4, 8], runs=1)
    assert list(row) == ["mixer", "16 tokens", "64 tokens", "exponent"]
    assert timed_row("delta_conv_default", sides=[4, 8], runs=1) == {}


@pytest.mark.slow
def test_every_published_model_has_its_rows() -> None:
    _, _, row = flops_rows(list(MODELS), ["linear_elu"])
    assert all(float(row[title].rstrip("x")) > 1 for title in MODELS)
