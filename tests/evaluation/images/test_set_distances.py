"""Frechet and kernel distance against independent implementations; reference statistics on disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torchmetrics.image.fid import FrechetInceptionDistance

from sparsight.evaluation.images import FrechetDistance, KernelDistance, Reference, in_batches
from sparsight.evaluation.images.frechet import frechet_distance
from sparsight.evaluation.images.images import to_uint8
from sparsight.evaluation.images.reference import load_reference, save_reference
from tests.tiny_features import Quarters

KERNEL = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


def two_sets() -> tuple[Tensor, Tensor]:
    return torch.rand(40, 1, 8, 8), torch.rand(30, 1, 8, 8) ** 2


# -- Frechet -----------------------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_two_other_libraries() -> None:
    real, fake = two_sets()
    value = FrechetDistance(Quarters()).with_reference(in_batches(real, 7)).of(in_batches(fake, 11))
    features = [Quarters()(to_uint8(images)).double() for images in (real, fake)]
    statistics = [fid_features_to_statistics(x) for x in features]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert value == {"fd_quarters": pytest.approx(expected, rel=1e-6)}
    other = FrechetInceptionDistance(Quarters())
    other.update(to_uint8(real), real=True)
    other.update(to_uint8(fake), real=False)
    assert value["fd_quarters"] == pytest.approx(float(other.compute()), rel=1e-4)


def test_frechet_distance_of_wide_and_singular_covariances() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(count, 32)) @ rng.normal(size=(32, 32)) for count in (400, 20)]
    statistics = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in features]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    moments = [torch.from_numpy(s[key]) for s in statistics for key in ("mu", "sigma")]
    assert float(frechet_distance(*moments)) == pytest.approx(expected, rel=1e-6)
    assert float(frechet_distance(*moments[2:], *moments[:2])) == pytest.approx(expected, rel=1e-6)


def test_no_rounding_makes_a_distance_negative() -> None:
    for seed in range(20):
        points_NF = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        moments = points_NF.mean(0), points_NF.T.cov()
        assert 0 <= float(frechet_distance(*moments, *moments)) < 1e-9


def test_the_reference_stays_and_samples_go() -> None:
    real, fake = two_sets()
    distance = FrechetDistance(Quarters()).with_reference(in_batches(real))
    first = distance.of(in_batches(fake))
    assert distance.of(in_batches(real))["fd_quarters"] == pytest.approx(0, abs=1e-9)
    assert distance.of(in_batches(fake)) == first
    with pytest.raises(ValueError, match="complete"):
        distance.update_reference(real, torch.arange(40))
    distance.forget_reference()
    assert distance.with_reference(in_batches(fake)).of(in_batches(fake))["fd_quarters"] < first["fd_quarters"]


def test_too_few_images_are_named() -> None:
    real, fake = two_sets()
    distance = FrechetDistance(Quarters()).with_reference(in_batches(real))
    with pytest.warns(UserWarning, match="4 samples do not span the 4 features of quarters"):
        distance.of(in_batches(fake[:4]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance.of(in_batches(fake[:5]))
    with pytest.raises(ValueError, match="2 images or more, got 1"):
        distance.of(in_batches(fake[:1]))
    with pytest.raises(ValueError, match="samples of 6x6 pixels, but 8x8 before"):
        distance.of(in_batches(fake[..., :6, :6]))


# -- kernel ------------------------------------------------------------------------------------------------------


def test_kernel_distance_is_the_unbiased_polynomial_mmd() -> None:
    real, fake = two_sets()
    real = real[:30]
    x, y = (Quarters()(to_uint8(images)).double() for images in (real, fake))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 4 + 1) ** 3

    same = sum((k.sum() - k.diagonal().sum()) / (30 * 29) for k in (kernel(x, x), kernel(y, y)))
    expected = float(same - 2 * kernel(x, y).mean())
    found = KernelDistance(Quarters(), subset_size=30, subsets=2).with_reference(in_batches(real, 7))
    assert found.of(in_batches(fake)) == {
        "kid_quarters": pytest.approx(expected, rel=1e-9),
        "kid_quarters_std": pytest.approx(0, abs=1e-12),
    }
    assert expected == pytest.approx(kernel_mmd(x.numpy(), y.numpy(), **KERNEL), rel=1e-9)


def test_kernel_distance_is_the_mean_over_subsets_that_its_seed_decides() -> None:
    real, fake = two_sets()
    extractor = Quarters()
    state = torch.get_rng_state()
    values = [
        KernelDistance(extractor, subset_size=20, subsets=50, seed=seed)
        .with_reference(in_batches(real))
        .of(in_batches(fake))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state()), "a metric must not move the global generator"
    assert values[0] == values[1] != values[2]
    x, y = (Quarters()(to_uint8(images)).double().numpy() for images in (real, fake))
    rng = np.random.default_rng(0)
    subsets = [
        kernel_mmd(rng.choice(x, 20, replace=False), rng.choice(y, 20, replace=False), **KERNEL) for _ in range(400)
    ]
    error = np.std(subsets) / 400**0.5 + values[0]["kid_quarters_std"] / 50**0.5
    assert abs(values[0]["kid_quarters"] - np.mean(subsets)) < 3 * error
    assert values[0]["kid_quarters_std"] == pytest.approx(np.std(subsets), rel=0.4)


def test_kernel_distance_does_not_depend_on_the_order_of_images() -> None:
    real, fake = two_sets()
    distance = KernelDistance(Quarters(), subset_size=10, subsets=5).with_reference(in_batches(real))
    assert distance.of(in_batches(fake, 7)) == distance.of(reversed(in_batches(fake, 7)))


def test_subsets_larger_than_the_sets_are_refused() -> None:
    real, fake = two_sets()
    distance = KernelDistance(Quarters(), subset_size=31).with_reference(in_batches(real))
    with pytest.raises(ValueError, match="30 samples are fewer than subset_size=31"):
        distance.of(in_batches(fake))
    with pytest.raises(ValueError, match="subset_size must be 2 or more"):
        KernelDistance(Quarters(), subset_size=1)


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [FrechetDistance, lambda *args: KernelDistance(*args, subset_size=20, subsets=3)])
def test_statistics_are_written_once_and_read_instead_of_images(metric: Any, tmp_path: Path) -> None:
    real, fake = two_sets()
    reference = Reference(str(tmp_path / "deep" / "reference.safetensors"), "real", count=40)
    first = metric(Quarters(), reference)
    assert first.wants_reference
    value = first.with_reference(in_batches(real)).of(in_batches(fake))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["reference.safetensors"]
    again = metric(Quarters(), reference)
    assert not again.wants_reference
    assert again.of(in_batches(fake)) == pytest.approx(value)
    assert "against 40 images of real" in again.protocol
    again.forget_reference()
    assert again.of(in_batches(fake)) == pytest.approx(value), "what was read from a file is not forgotten"


def test_a_file_of_something_else_is_refused_with_both_values(tmp_path: Path) -> None:
    real, fake = two_sets()
    file = str(tmp_path / "reference.safetensors")
    FrechetDistance(Quarters(), Reference(file, "real")).with_reference(in_batches(real)).of(in_batches(fake))
    with pytest.raises(ValueError, match="dataset: real there, other asked for"):
        FrechetDistance(Quarters(), Reference(file, "other"))
    with pytest.raises(ValueError, match="statistics of 40 images of real, but count=50 is asked for"):
        FrechetDistance(Quarters(), Reference(file, "real", count=50))
    stale = Quarters(weight=2.0)
    hashes = f"{Quarters().identity[:60]} there, {stale.identity[:60]} asked for"
    with pytest.raises(ValueError, match=f"extractor_hash: {hashes}"):
        FrechetDistance(stale, Reference(file, "real"))
    with pytest.raises(ValueError, match="kind: moments there, features asked for"):
        KernelDistance(Quarters(), Reference(file, "real"))
    small = FrechetDistance(Quarters(), Reference(file, "real"))
    with pytest.raises(ValueError, match="samples of 6x6 pixels, but 8x8"):
        small.of(in_batches(fake[..., :6, :6]))


def test_statistics_of_which_a_bit_rotted_are_refused(tmp_path: Path) -> None:
    reference = Reference(str(tmp_path / "reference.safetensors"), "real")
    save_reference(reference, {"mean": torch.ones(4), "count": torch.tensor(4)}, {"dataset": "real"})
    assert load_reference(reference, {"dataset": "real"})[1] == {"dataset": "real"}
    content = bytearray(Path(reference.file).read_bytes())
    content[-1] ^= 1
    Path(reference.file).write_bytes(content)
    with pytest.raises(ValueError, match=r"reference\.safetensors is damaged: its checksum is wrong; delete it"):
        load_reference(reference, {"dataset": "real"})


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "reference.safetensors"
    save_file({"mean": torch.zeros(4)}, file)
    with pytest.raises(ValueError, match="dataset: None there, real asked for"):
        FrechetDistance(Quarters(), Reference(str(file), "real"))
    file.write_text("no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        FrechetDistance(Quarters(), Reference(str(file), "real"))


def test_a_reference_of_the_wrong_number_is_not_written(tmp_path: Path) -> None:
    real, fake = two_sets()
    file = tmp_path / "reference.safetensors"
    distance = FrechetDistance(Quarters(), Reference(str(file), "real", count=41)).with_reference(in_batches(real))
    with pytest.raises(ValueError, match="statistics of 40 images of real, but count=41 is asked for"):
        distance.of(in_batches(fake))
    assert not file.exists()
