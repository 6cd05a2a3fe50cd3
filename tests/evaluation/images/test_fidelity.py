"""Fidelity to the teacher against torchmetrics and against formulas written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.image.lpips import _LPIPS

from sparsight.evaluation.images import Samples, TeacherError, TeacherLPIPS, TeacherSimilarity
from sparsight.evaluation.images.images import to_uint8
from tests import tiny_networks
from tests.tiny_features import Quarters


def pairs(side: int = 8) -> list[Samples]:
    """Two batches of 3 and 2 samples with latents."""
    images, teacher = torch.rand(5, 1, side, side), torch.rand(5, 1, side, side)
    latents, teacher_latents = torch.randn(5, 2, 4, 4), 3 * torch.randn(5, 2, 4, 4)
    return [
        Samples(images[ids], ids, None, teacher[ids], latents[ids], teacher_latents[ids])
        for ids in torch.arange(5).split(3)
    ]


def whole(batches: list[Samples], name: str) -> Tensor:
    return torch.cat([getattr(samples, name) for samples in batches])


@pytest.mark.parametrize(("space", "student"), [("pixels", "images"), ("latents", "latents")])
def test_error_and_peak_signal_noise_ratio_are_those_of_all_samples_together(space: str, student: str) -> None:
    batches = pairs()
    x, y = whole(batches, student), whole(batches, f"teacher_{student}")
    peak = 1.0 if space == "pixels" else float(y.max() - y.min())
    psnr = float(peak_signal_noise_ratio(x, y, data_range=peak))
    name = f"fidelity_{space[:-1]}"
    assert TeacherError(space).of(batches) == {  # type: ignore[arg-type]
        f"{name}_rmse": pytest.approx(float((x - y).square().mean().sqrt()), rel=1e-5),
        f"{name}_psnr": pytest.approx(psnr, rel=1e-5),
    }


def test_equal_samples_have_no_error() -> None:
    images = torch.rand(2, 1, 8, 8)
    equal = [Samples(images, torch.arange(2), teacher_images=images)]
    assert TeacherError().of(equal) == {"fidelity_pixel_rmse": 0, "fidelity_pixel_psnr": float("inf")}
    assert TeacherSimilarity(Quarters()).of(equal)["fidelity_cosine_quarters"] == pytest.approx(1)


def test_similarity_is_the_mean_cosine_of_features() -> None:
    batches = pairs()
    x, y = (Quarters()(to_uint8(whole(batches, name))) for name in ("images", "teacher_images"))
    expected = float(((x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)).mean())
    assert TeacherSimilarity(Quarters()).of(batches) == {"fidelity_cosine_quarters": pytest.approx(expected, rel=1e-5)}


def test_features_are_made_once_for_equal_extractors() -> None:
    calls = []
    first, second = Quarters(), Quarters()
    for extractor in (first, second):
        extractor.register_forward_hook(lambda *_: calls.append(1))
    samples = pairs()[0]
    assert torch.equal(samples.features(first), samples.features(second))
    assert not torch.equal(samples.features(first), samples.teacher_features(second))
    assert len(calls) == 2


def test_what_the_teacher_did_not_draw_is_asked_for() -> None:
    alone = [Samples(torch.rand(1, 1, 8, 8), torch.arange(1))]
    for metric in (TeacherError(), TeacherError("latents"), TeacherSimilarity(Quarters())):
        with pytest.raises(ValueError, match="fidelity needs the teacher's samples"):
            metric.of(alone)
    with pytest.raises(ValueError, match="allowed: pixels, latents"):
        TeacherError("words")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_networks.save_alexnet(tmp_path_factory.mktemp("lpips") / "alexnet.pth")


@torch.no_grad()
def lpips_by_hand(alexnet: Path, first: Tensor, second: Tensor) -> float:
    """Channel-normalised features after the five ReLUs, squared differences, linear weights, spatial mean, sum."""
    features = torchvision.models.alexnet(weights=None).features
    saved = torch.load(alexnet, weights_only=True)
    features.load_state_dict({name.removeprefix("features."): value for name, value in saved.items()})
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = ((images.expand(-1, 3, -1, -1) * 2 - 1 - shift) / scale for images in (first, second))
    linear = iter(
        parameter for name, parameter in _LPIPS(net="alex", pnet_rand=True).named_parameters() if "lin" in name
    )
    total = torch.zeros(len(first))
    for layer in features:
        x, y = layer(x), layer(y)
        if isinstance(layer, torch.nn.ReLU):
            apart = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
            total += (apart.square() * next(linear).view(1, -1, 1, 1)).sum(1).mean((1, 2))
    return float(total.mean())


def test_lpips_is_the_published_formula_on_given_weights(alexnet: Path) -> None:
    batches = pairs(side=64)
    state = torch.get_rng_state()
    metric = TeacherLPIPS(str(alexnet))
    assert torch.equal(state, torch.get_rng_state())
    x, y = (to_uint8(whole(batches, name)).float() / 255 for name in ("images", "teacher_images"))
    expected = lpips_by_hand(alexnet, x, y)
    assert expected > 1e-3
    assert metric.of(batches) == {"fidelity_lpips_alex": pytest.approx(expected, rel=1e-3)}


def test_lpips_refuses_other_backbones_and_never_downloads(alexnet: Path) -> None:
    with pytest.raises(ValueError, match="is not torchvision's vgg"):
        TeacherLPIPS(str(alexnet), network="vgg")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TeacherLPIPS("nowhere.pth")
