"""Errors of candidates against the same thing done by hand: at a site, in the prediction, in four families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blocks import (
    FactorizedAttention,
    FeatureMixer,
    Grid,
    LinearAttention,
    NeighborhoodAttention,
    NoMixing,
    Site,
    SoftmaxAttention,
)
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.analyze.analysis import Analysis
from sparsight.diffusion.analyze.attention.statistics import measure
from sparsight.diffusion.analyze.candidates import BASELINES, MeanOfValues, OwnValue, named
from sparsight.diffusion.analyze.run import Recording, Settings, record, refused
from sparsight.diffusion.analyze.watched import watched
from sparsight.diffusion.families.known import example_inputs, family_of
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.surgery.replace import attention_weights, replace, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
from sparsight.testing import relative_l2
from tests import tiny
from tests.tiny_flux import flux
from tests.tiny_rows import few
from tests.tiny_sd3 import sd35
from tests.tiny_wan import wan

NEAR = partial(NeighborhoodAttention, kernel_size=3)
NAME = "NeighborhoodAttention(kernel_size=3x3)"
MAKE: dict[str, Callable[[], Any]] = {**tiny.FAMILIES, "sd3": sd35, "flux": flux, "wan": wan}
LEVELS = torch.tensor([10, 400, 990])
NO_CONDITION = ("hidden_states", "sample", "timestep", "img_ids", "txt_ids")


def batches(denoiser: Any, count: int = 2) -> list[dict[str, Any]]:
    torch.manual_seed(3)
    channels, *sides = family_of(denoiser).sample_shape(denoiser)
    size = tuple(min(side, most) for side, most in zip(sides, (2, 16, 16)[-len(sides) :], strict=True))
    cond = example_inputs(denoiser, batch=3, size=size)
    cond = {name: value for name, value in cond.items() if name not in NO_CONDITION}
    return [
        {"xt": torch.randn(3, channels, *size), "cond": cond, "timestep": LEVELS, "level": LEVELS} for _ in range(count)
    ]


def bucket_of(batch: Any) -> Tensor:
    return torch.as_tensor(batch["level"] * 2 // 1000)


def analysed(denoiser: Any, mixers: Sequence[Any], given: Sequence[Any], **options: Any) -> Recording:
    candidates = named(mixers, find_sites(denoiser))
    settings = Settings(buckets=2, **options)
    with watched(denoiser) as sites:
        return record(denoiser, sites, given, candidates=candidates, bucket_of=bucket_of, settings=settings)


def predicted(denoiser: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        return predict(denoiser, batch["xt"], batch["timestep"], batch["cond"])


@pytest.mark.parametrize("family", few(MAKE, "dit"))
def test_a_denoiser_is_as_it_was_and_what_is_exact_has_no_error(family: str) -> None:
    denoiser = tiny.awake(MAKE[family]()).eval()
    given = batches(denoiser)
    before, names = predicted(denoiser, given[0]), list(denoiser.state_dict())
    found = analysed(denoiser, [SoftmaxAttention, LinearAttention, NoMixing], given)
    assert torch.equal(predicted(denoiser, given[0]), before)
    assert list(denoiser.state_dict()) == names
    assert not any(module._forward_pre_hooks for module in denoiser.modules())
    for known in found.sites.values():
        exact = known.errors["SoftmaxAttention"]
        for sums in (exact.before, exact.after, exact.prediction):
            assert sums.relative() == pytest.approx(0, abs=1e-5)
        for name in ("LinearAttention", *BASELINES):
            assert known.errors[name].after.relative() > 0  # type: ignore[operator]
        assert known.errors["identity"].after.relative() > 1e-3  # type: ignore[operator]
        none = known.errors["NoMixing"]
        assert (none.before.relative() is None) == (known.site.text is None)  # it has no heads but at joint sites
        assert none.prediction.relative() is not None


@pytest.mark.parametrize("family", few(MAKE, "dit", "sd3"))
def test_errors_are_those_of_mixers_put_there_by_hand(family: str) -> None:
    denoiser = tiny.awake(MAKE[family]()).eval()
    first, batch = batches(denoiser)
    found = analysed(denoiser, [NEAR], [first, batch])
    for site in find_sites(denoiser)[:2]:
        changed = copy.deepcopy(denoiser)
        shell = replace(changed, NEAR, SiteSelection(include=[site.path]))[site.path]
        outputs = []
        for mode in (Mode.TEACHER, Mode.STUDENT):
            set_mode([shell], mode)
            outputs.append((predicted(changed, batch), shell.take_output()))
        (wanted, wanted_site), (output, output_site) = outputs
        errors = found.sites[site.path].errors[found.names[0]]
        # the teacher's own input enters the site in both passes, as nothing before it was changed
        assert errors.after.relative() == pytest.approx(relative_l2(output_site, wanted_site), rel=1e-4)
        assert errors.prediction.relative() == pytest.approx(relative_l2(output, wanted), rel=1e-4)
        noisy = slice(2, 3)  # the sample of the second bucket
        assert errors.after.relative(1) == pytest.approx(relative_l2(output_site[noisy], wanted_site[noisy]), rel=1e-4)


def test_errors_in_front_of_the_projection_and_maps_are_those_of_the_projected_input() -> None:
    denoiser = tiny.dit().eval()
    first, batch = batches(denoiser)
    found = analysed(denoiser, [NEAR], [first, batch])
    site = find_sites(denoiser)[1]
    attention = denoiser.get_submodule(site.path)
    seen: list[Tensor] = []
    attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for each in (first, batch):
        predicted(denoiser, each)
    q, k, v = attention_weights(attention).projected(seen[1], site.heads)
    core = F.scaled_dot_product_attention(q, k, v)
    known = found.sites[site.path]
    made: dict[str, Any] = {NAME: NEAR(site), "mean of v": MeanOfValues(site), "identity": OwnValue(site)}
    for name, mixer in made.items():
        mixed = mixer.mix(q, k, v, site.grid, site.head_dim**-0.5)
        assert known.errors[name].before.relative() == pytest.approx(relative_l2(mixed, core), rel=1e-4)
        one = relative_l2(mixed[:, 1], core[:, 1])
        assert known.errors[name].before.relative(head=1) == pytest.approx(one, rel=1e-4)
    layout, weights = site.layout(site.grid, 16), attention_weights(attention)
    pairs = [weights.projected(each, site.heads)[:2] for each in seen]
    entropies = [measure(*pair, layout, 8**-0.5, queries=16).means["entropy"] for pair in pairs]
    assert known.sums.samples(0) == 4 and known.sums.samples(1) == 2
    late = torch.stack([each[2] for each in entropies]).mean(0)
    assert known.sums.row(1, 0)["entropy"] == pytest.approx(float(late[0]), rel=1e-4)


def test_trained_mixers_are_measured_as_they_are_and_shells_stay() -> None:
    denoiser = tiny.dit().eval()
    shells = replace(denoiser, NoMixing)
    for shell in shells.values():
        shell.mixer.linear.weight.data.zero_()
        shell.mixer.linear.bias.data.zero_()
    given = batches(denoiser)
    candidates, settings = {"zero": dict(shells)}, Settings(buckets=2)
    with watched(denoiser) as sites:
        found = record(denoiser, sites, given, candidates=candidates, bucket_of=bucket_of, settings=settings)
    assert [known.errors["zero"].after.relative() for known in found.sites.values()] == pytest.approx([1, 1])
    assert shells_of(denoiser) == shells
    assert all(shell.mixer.linear.weight.requires_grad for shell in shells.values())
    set_mode(shells.values(), Mode.TEACHER)
    assert predicted(denoiser, given[0]).isfinite().all()


class Square(FeatureMixer):
    """Takes square grids alone, and one site."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        if site.path.startswith("transformer_blocks.0"):
            raise ValueError(f"{site.path} is no place for Square: choose another")

    def flops(self, grid: Grid) -> int:
        return 0

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        if grid.height != grid.width:
            raise ValueError(f"a grid of {grid} is not square")
        return hidden_BNC


def test_what_cannot_stand_somewhere_is_told_and_left_out() -> None:
    denoiser = tiny.pixart().eval()
    found = analysed(denoiser, [Square, NEAR], batches(denoiser))
    first, second = found.sites.values()
    assert (first.names(), second.names()) == ([NAME, *BASELINES], ["Square", NAME, *BASELINES])
    assert refused(found) == [
        "Square cannot stand at transformer_blocks.0.attn1: it is no place for Square: choose another"
    ]
    assert "it is no place for Square" in Analysis(found).text()
    wide = [{**batch, "xt": torch.randn(3, 4, 8, 16)} for batch in batches(denoiser)]
    found = analysed(denoiser, [Square], wide)
    assert found.size == (8, 16) and str(found.sites[second.site.path].grid) == "4x8"
    assert refused(found)[1:] == ["Square cannot stand at transformer_blocks.1.attn1: a grid of 4x8 is not square"]


def test_one_batch_serves_for_start_and_errors_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    denoiser = tiny.dit().eval()
    found = analysed(denoiser, [NoMixing], batches(denoiser, 1))
    assert "there is one batch" in caplog.text
    known = next(iter(found.sites.values()))
    assert known.errors["NoMixing"].prediction.relative() is not None
    assert (found.batches, found.samples, known.sums.samples(0)) == (1, [2, 1], 2)


def test_predictions_are_measured_on_so_many_batches_or_on_none() -> None:
    denoiser = tiny.dit().eval()
    given = batches(denoiser, 3)
    known = next(iter(analysed(denoiser, [NEAR], given, prediction_batches=0).sites.values()))
    assert known.errors[NAME].prediction.relative() is None
    assert known.errors[NAME].after.relative() is not None


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        ([NEAR, NEAR], "mixers holds NeighborhoodAttention.* twice"),
        ([partial(NeighborhoodAttention, kernel_size=0)], "for none of the 2 sites"),
    ],
    ids=["twice", "nowhere"],
)
def test_candidates_that_make_no_sense_are_refused(mixers: list[Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        named(mixers, find_sites(tiny.dit()))


def test_without_batches_there_is_nothing_to_analyse() -> None:
    with pytest.raises(ConfigurationError, match="no batches"):
        analysed(tiny.dit(), [NEAR], [])
    with pytest.raises(ConfigurationError, match="buckets is 0; allowed: 1 or more"):
        Settings(buckets=0)


def test_mixers_that_are_fitted_to_the_teacher_are_measured_as_fitted() -> None:
    denoiser = tiny.awake(tiny.dit()).eval()
    found = analysed(denoiser, [partial(FactorizedAttention, window=2)], batches(denoiser))
    for known in found.sites.values():
        fitted = known.candidates[found.names[0]].mixer
        assert not torch.equal(fitted.key_map[0], torch.eye(known.site.head_dim))
        assert not any(parameter.requires_grad for parameter in fitted.parameters())
