"""Neighbour metrics, the Gaussian kernel distance and patches against slow or independent implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from callbacks.measured import check_metrics
from sparsight.evaluation.images import (
    DensityCoverage,
    FrechetDistance,
    GaussianDistance,
    PatchFrechetDistance,
    PrecisionRecall,
    Reference,
    Samples,
    in_batches,
)
from sparsight.evaluation.images.images import to_uint8
from sparsight.evaluation.images.sets import gaussian, neighbours
from tests.tiny_features import Quarters


def two_sets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(40, 1, 8, 8, generator=generator), torch.rand(30, 1, 8, 8, generator=generator)
    return real, fake**1.2


def features(images: Tensor) -> np.ndarray:
    return Quarters()(to_uint8(images)).double().numpy()


@pytest.fixture(params=[2048, 7])
def rows(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances to all others at once, and in blocks that do not divide the sets."""
    for module in (neighbours, gaussian):
        monkeypatch.setattr(module, "_ROWS", request.param)


# -- neighbours --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_torch_fidelity(k: int) -> None:
    real, fake = two_sets()
    found = PrecisionRecall(Quarters(), neighbours=k).with_reference(in_batches(real, 9)).of(in_batches(fake, 11))
    drawn, known = (torch.from_numpy(features(images)) for images in (fake, real))
    precision, recall = calculate_precision_recall_full(drawn, known, neighborhood=k)
    assert found == {"precision_quarters": pytest.approx(precision), "recall_quarters": pytest.approx(recall)}
    assert 0 < precision < 1 and 0 < recall < 1 and precision != recall, "other values would tell little"


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_counted_ball_by_ball(k: int) -> None:
    real, fake = two_sets()
    found = DensityCoverage(Quarters(), neighbours=k).with_reference(in_batches(real, 9)).of(in_batches(fake, 11))
    known, drawn = features(real), features(fake)
    reach = KDTree(known).query(known, k=k + 1)[0][:, k]
    inside = [[np.linalg.norm(y - x) < r for x, r in zip(known, reach, strict=True)] for y in drawn]
    assert found == {
        "density_quarters": pytest.approx(np.sum(inside) / (k * len(drawn))),
        "coverage_quarters": pytest.approx(np.any(inside, axis=0).mean()),
    }
    assert 0 < found["coverage_quarters"] < 1


def test_equal_and_distant_sets_have_the_values_that_the_papers_name() -> None:
    real, _ = two_sets()
    far = real * 0.01
    same, other = (
        {
            name: value
            for metric in (PrecisionRecall(Quarters()), DensityCoverage(Quarters()))
            for name, value in metric.with_reference(in_batches(real)).of(in_batches(images)).items()
        }
        for images in (real, far)
    )
    assert [same[f"{name}_quarters"] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert same["density_quarters"] == pytest.approx(1, abs=0.25)
    assert set(other.values()) == {0.0}


@pytest.mark.parametrize("kind", [PrecisionRecall, DensityCoverage])
def test_sets_without_a_neighbour_of_that_rank_are_refused(kind: Any) -> None:
    real, fake = two_sets()
    metric = kind(Quarters(), neighbours=5).with_reference(in_batches(real))
    with pytest.raises(ValueError, match="5 samples have no neighbour of rank 5"):
        metric.of(in_batches(fake[:5]))
    with pytest.raises(ValueError, match="4 reference images have no neighbour of rank 5"):
        kind(Quarters(), neighbours=5).with_reference(in_batches(real[:4])).of(in_batches(fake))
    with pytest.raises(ValueError, match="neighbours is 0"):
        kind(Quarters(), neighbours=0)
    with pytest.raises(ValueError, match="num_samples is 5, fewer than the 6 that"):
        check_metrics([metric], samples=5, column=None, references="data")


# -- Gaussian kernel ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(("sigma", "scale"), [(10.0, 1000.0), (0.3, 1.0)])
def test_the_gaussian_distance_is_the_biased_estimate_on_unit_vectors(sigma: float, scale: float) -> None:
    real, fake = two_sets()
    metric = GaussianDistance(Quarters(), sigma=sigma, scale=scale)
    found = metric.with_reference(in_batches(real, 9)).of(in_batches(fake, 11))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (features(real), features(fake)))
    xx, yy, xy = (np.exp(-cdist(*pair, "sqeuclidean") / (2 * sigma**2)).mean() for pair in ((x, x), (y, y), (x, y)))
    expected = xx + yy - 2 * xy
    assert found == {"mmd_quarters": pytest.approx(scale * expected, rel=1e-8, abs=1e-12)}
    assert expected > 0
    again = metric.of(in_batches(real))["mmd_quarters"]
    assert 0 <= again < 1e-9, "equal sets, and no rounding below 0"


def test_a_gaussian_distance_of_nothing_is_refused() -> None:
    real, fake = two_sets()
    with pytest.raises(ValueError, match="no samples to compare"):
        GaussianDistance(Quarters()).with_reference(in_batches(real)).of([])
    with pytest.raises(ValueError, match="no reference images to compare"):
        GaussianDistance(Quarters()).of(in_batches(fake))
    with pytest.raises(ValueError, match="sigma and scale must be above 0"):
        GaussianDistance(Quarters(), sigma=0)


# -- patches -----------------------------------------------------------------------------------------------------


def cut(metric: PatchFrechetDistance, images: Tensor, ids: Tensor) -> list[Tensor]:
    return [view.images for view in metric.views(Samples(images, ids))]


def test_patch_distance_is_the_frechet_distance_of_all_patches() -> None:
    real, fake = two_sets()
    metric = PatchFrechetDistance(Quarters(), size=5, patches=3)
    found = metric.with_reference(in_batches(real, 9)).of(in_batches(fake, 11))
    statistics = []
    for images in (real, fake):
        patches = torch.cat(cut(metric, images, torch.arange(len(images))))
        assert patches.shape == (3 * len(images), 1, 5, 5)
        rows = features(patches)
        statistics.append((rows.mean(0), np.cov(rows, rowvar=False)))
    (m, a), (n, b) = statistics
    expected = np.sum((m - n) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert found == {"patch_fd_quarters_5px": pytest.approx(expected, rel=1e-6)}


def test_places_of_patches_depend_on_the_id_alone_and_reach_every_edge() -> None:
    image = torch.arange(63.0).view(1, 1, 7, 9) / 63  # a patch's first pixel tells where it lies
    metric = PatchFrechetDistance(Quarters(), size=5, patches=40)
    corners = torch.cat(cut(metric, image, torch.tensor([3])))[:, 0, 0, 0] * 63
    places = {divmod(round(float(corner)), 9) for corner in corners}
    assert {row for row, _ in places} == {0, 1, 2} and {column for _, column in places} == {0, 1, 2, 3, 4}
    several = cut(metric, image.expand(3, -1, -1, -1), torch.tensor([9, 3, 4]))
    assert torch.equal(torch.stack(several)[:, 1, 0, 0, 0] * 63, corners), "neighbours in a batch change nothing"
    assert not torch.equal(torch.stack(several)[:, 0, 0, 0, 0] * 63, corners)
    other = PatchFrechetDistance(Quarters(), size=5, patches=40, seed=1)
    assert not torch.equal(torch.cat(cut(other, image, torch.tensor([3])))[:, 0, 0, 0] * 63, corners)


def test_files_of_other_patches_are_refused_and_count_images(tmp_path: Any) -> None:
    real, fake = two_sets()
    file = str(tmp_path / "patches.safetensors")
    first = PatchFrechetDistance(Quarters(), Reference(file, "real", count=40), size=5, patches=3)
    value = first.with_reference(in_batches(real)).of(in_batches(fake))
    again = PatchFrechetDistance(Quarters(), Reference(file, "real", count=40), size=5, patches=3, suffix="real")
    assert again.of(in_batches(fake)) == {"patch_fd_quarters_5px_real": pytest.approx(value["patch_fd_quarters_5px"])}
    assert "against 40 images of real, 3 patches of 5 px" in again.protocol
    for options in ({"size": 4, "patches": 3}, {"size": 5, "patches": 2}, {"size": 5, "patches": 3, "seed": 1}):
        with pytest.raises(ValueError, match=r"kind: moments of 3 patches of 5 px, seed 0 there, moments of"):
            PatchFrechetDistance(Quarters(), Reference(file, "real"), **options)
    with pytest.raises(ValueError, match="kind: moments of 3 patches"):
        FrechetDistance(Quarters(), Reference(file, "real"))


def test_patches_that_do_not_fit_are_refused() -> None:
    real, _ = two_sets()
    with pytest.raises(ValueError, match="patches of 9 px do not fit into images of 8x8: lower size"):
        PatchFrechetDistance(Quarters(), size=9).with_reference(in_batches(real))
    with pytest.raises(ValueError, match="size and patches must be 1 or more, got 0 and 10"):
        PatchFrechetDistance(Quarters(), size=0)


# -- several of a kind -------------------------------------------------------------------------------------------


def test_two_distances_of_one_name_are_refused_before_anything_is_drawn() -> None:
    twice = [FrechetDistance(Quarters()), FrechetDistance(Quarters())]
    with pytest.raises(ValueError, match="two of FrechetDistance on quarters would have one name: give one of them a"):
        check_metrics(twice, samples=9, column=None, references="data")
    check_metrics([twice[0], FrechetDistance(Quarters(), suffix="again")], samples=9, column=None, references="data")


def test_a_file_that_is_there_stands_beside_the_teacher(tmp_path: Any) -> None:
    real, fake = two_sets()
    reference = Reference(str(tmp_path / "real.safetensors"), "real")
    with pytest.raises(ValueError, match="is not there and holds other images"):
        check_metrics([FrechetDistance(Quarters(), reference)], samples=9, column=None, references="teacher")
    FrechetDistance(Quarters(), reference).with_reference(in_batches(real)).complete_reference()
    metric = FrechetDistance(Quarters(), reference, suffix="real")
    check_metrics([metric, FrechetDistance(Quarters())], samples=9, column=None, references="teacher")
    assert list(metric.of(in_batches(fake))) == ["fd_quarters_real"]
