"""FLOPs: formulas against torch's counter, and published networks at their real size."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn

from blocks import DeltaConvBlock, Grid, Merge, NeighborhoodAttention, PooledAttention, SoftmaxAttention, TileAttention
from sparsight.diffusion.families.known import published
from sparsight.diffusion.measure import flops
from sparsight.diffusion.measure.flops import attention_flops, count_flops, count_site_flops, mixer_flops
from sparsight.diffusion.surgery.replace import replace
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites, meta_twin, probe_grids, students
from tests import tiny


@cache
def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return published(name)


@pytest.mark.parametrize(
    ("name", "latent", "total", "attention"),
    [
        ("sd15", 64, 803.3, 173.7),
        pytest.param("sd15", 128, 4674.0, 2164.6, marks=pytest.mark.slow),
        pytest.param("sd15", 512, 545118, 505013, marks=pytest.mark.slow),
        pytest.param("sdxl", 128, 6761.2, 1691.1, marks=pytest.mark.slow),
        pytest.param("pixart_sigma", 64, 1288.7, 439.7, marks=pytest.mark.slow),
        pytest.param("pixart_sigma", 128, 6633.6, 3382.3, marks=pytest.mark.slow),
    ],
)
def test_published_networks(name: str, latent: int, total: float, attention: float) -> None:
    """Giga-FLOPs of one forward pass, batch 1, worked out by hand for diffusion_mixers.md, section 5.3."""
    denoiser = on_meta(name)
    grids = probe_grids(denoiser, (latent, latent))
    of_sites = sum(attention_flops(site, grids[site.path]) for site in find_sites(denoiser))
    assert count_flops(denoiser, size=(latent, latent)) / 1e9 == pytest.approx(total, rel=1e-4)
    assert of_sites / 1e9 == pytest.approx(attention, rel=3e-4)


def test_delta_conv_in_stable_diffusion_costs_what_the_specification_says() -> None:
    denoiser = meta_twin(on_meta("sd15"))
    with torch.device("meta"):
        replace(denoiser, partial(DeltaConvBlock, preset="released_sd15"))
    for size, giga in ((64, 14.0), (128, 55.8)):
        grids = probe_grids(denoiser, (size, size))
        flops = sum(mixer_flops(student.mixer, grids[path]) for path, student in students(denoiser).items())
        assert flops / 1e9 == pytest.approx(giga, rel=5e-3)


TILES = [partial(TileAttention, tile=2), partial(PooledAttention, tile=2, without_own=True)]
MIXERS = {
    "merge": partial(Merge, parts=TILES),
    "softmax": SoftmaxAttention,
    "default": DeltaConvBlock,
    "paper": partial(DeltaConvBlock, preset="paper_pixart", kernel_size=3),
    "released": partial(DeltaConvBlock, preset="released_pixart", kernel_size=3, scales=(1, 1 / 3), pool_branch=False),
}


@pytest.mark.parametrize(
    ("family", "mixer"), [*((family, "default") for family in tiny.FAMILIES), *(("dit", mixer) for mixer in MIXERS)]
)
def test_formulas_equal_the_counter_at_every_site(family: str, mixer: str) -> None:
    denoiser, batch = tiny.FAMILIES[family](), 3
    first, *others = find_sites(denoiser)
    size = (24, 16) if family != "dit" else (16, 16)
    grids = probe_grids(denoiser, size)
    replace(denoiser, MIXERS[mixer], SiteSelection(exclude=[first.path]))
    counted = count_site_flops(denoiser, size=size, batch=batch)
    assert counted[first.path] == batch * attention_flops(first, grids[first.path])
    for path, student in students(denoiser).items():
        assert counted[path] == batch * mixer_flops(student.mixer, grids[path])
    assert len(others) == len(students(denoiser))


def test_reference_form_of_neighbourhood_attention_computes_more_than_its_method() -> None:
    denoiser = tiny.dit()
    replace(denoiser, partial(NeighborhoodAttention, kernel_size=3))
    path, student = next(iter(students(denoiser).items()))
    assert mixer_flops(student.mixer, Grid(4, 4)) < count_site_flops(denoiser)[path]
    assert mixer_flops(student.mixer, Grid(3, 3)) == attention_flops(student.mixer.site, Grid(3, 3))


def test_a_student_is_counted_without_its_teachers() -> None:
    denoiser = tiny.unet()
    before = count_flops(denoiser)
    replace(denoiser, partial(DeltaConvBlock, kernel_size=3))
    assert count_flops(denoiser) < before == count_flops(meta_twin(denoiser))


def test_a_number_is_counted_once_for_all_that_settles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def student(mixer: Any, **options: Any) -> Any:
        denoiser = tiny.dit(**options)
        replace(denoiser, mixer)
        return denoiser

    passes: list[int] = []
    count = flops._count
    monkeypatch.setattr(flops, "_counted", {})
    monkeypatch.setattr(flops, "_count", lambda *given: (passes.append(1), count(*given))[1])
    small = partial(DeltaConvBlock, kernel_size=3)
    plain = tiny.dit()
    found = [count_flops(each) for each in (plain, student(small), tiny.dit(), student(small))]
    assert found[:2] == found[2:] and found[0] != found[1] and len(passes) == 2
    others = (
        student(partial(DeltaConvBlock, kernel_size=5)),
        student(partial(DeltaConvBlock, kernel_size=3, scales=[1])),
        student(small, num_layers=3),
    )
    assert len({*found, *map(count_flops, others)}) == 5 and len(passes) == 5
    assert count_flops(plain, batch=2) == 2 * found[0] < 2 * count_flops(plain, size=(16, 16)) and len(passes) == 7
