"""Classifier scores, features of transformers' vision models and TOPIQ against independent implementations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.inception import InceptionScore
from torchvision.transforms.v2 import functional as vision
from transformers import AutoImageProcessor, Dinov2ForImageClassification, Dinov2Model

from callbacks.measured import check_metrics
from sparsight.evaluation.images import (
    TOPIQ,
    ClassifierLogits,
    ClassifierScore,
    FrechetDistance,
    TransformersFeatures,
    in_batches,
)
from sparsight.evaluation.images.images import to_uint8
from tests import tiny_networks
from tests.tiny_features import Quarters
from tests.tiny_topiq import save_topiq


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_networks.save_dinov2(tmp_path_factory.mktemp("models") / "DINOv2-Tiny"))


def drawn(count: int = 25, height: int = 24, width: int = 24) -> Tensor:
    rough = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")


def pillow(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in to_uint8(images)]


# -- classifiers -------------------------------------------------------------------------------------------------


def test_logits_are_those_of_transformers_and_its_processor(dinov2: str) -> None:
    images = drawn(4, 24, 36)
    network, processor = (
        Dinov2ForImageClassification.from_pretrained(dinov2),
        AutoImageProcessor.from_pretrained(dinov2),
    )
    with torch.no_grad():
        expected = network.eval()(**processor(images=pillow(images), return_tensors="pt")).logits
    extractor = ClassifierLogits(dinov2)
    torch.testing.assert_close(extractor(to_uint8(images)), expected, atol=0.05, rtol=0)  # Pillow and torch round apart
    assert (extractor.name, extractor.num_features) == ("dinov2-tiny", 5)
    assert expected.std(0).min() > 0.05, "the comparison means nothing if all are alike"


@pytest.mark.parametrize("splits", [1, 4, 10])
def test_classifier_score_is_the_mean_over_shuffled_parts(splits: int) -> None:
    images = drawn()
    logits = 9 * Quarters()(to_uint8(images)).double().numpy()
    metric = ClassifierScore(Quarters(weight=9.0), splits=splits)
    state = torch.get_rng_state()
    value = metric.of(in_batches(images, 7))
    assert torch.equal(state, torch.get_rng_state()), "a metric must not move the global generator"
    scores, shuffled = [], logits[np.random.RandomState(2020).permutation(25)]
    for part in range(splits):
        rows = shuffled[part * 25 // splits : (part + 1) * 25 // splits]
        p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        scores.append(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    assert value == {
        "classifier_score_quarters": pytest.approx(np.mean(scores), rel=1e-5),
        "classifier_score_quarters_std": pytest.approx(np.std(scores), abs=1e-5),
    }
    assert value == metric.of(reversed(in_batches(images, 7))), "the order of images changes nothing"
    assert np.mean(scores) > 1.01
    assert value != ClassifierScore(Quarters(weight=9.0), splits=splits, seed=1).of(in_batches(images)) or splits == 1


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`", "ignore:std")
def test_classifier_score_of_one_part_is_that_of_torchmetrics(dinov2: str) -> None:
    extractor = ClassifierLogits(dinov2)
    other = InceptionScore(feature=extractor, splits=1)
    other.update(to_uint8(drawn()))
    value = ClassifierScore(extractor, splits=1).of(in_batches(drawn()))
    assert value["classifier_score_dinov2-tiny"] == pytest.approx(float(other.compute()[0]), rel=1e-5)
    assert value["classifier_score_dinov2-tiny"] > 1.001


def test_parts_without_samples_are_refused() -> None:
    metric = ClassifierScore(Quarters(), splits=10)
    with pytest.raises(ValueError, match="9 samples are fewer than splits=10"):
        metric.of(in_batches(drawn(9)))
    with pytest.raises(ValueError, match="num_samples is 9, fewer than the 10 that ClassifierScore needs"):
        check_metrics([metric], samples=9, column=None, references="data")
    with pytest.raises(ValueError, match="splits is 0"):
        ClassifierScore(Quarters(), splits=0)


def test_models_without_a_trained_classifier_are_refused(dinov2: str, tmp_path: Path) -> None:
    Dinov2Model.from_pretrained(dinov2).save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(dinov2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights of classifier\.\w+: it is no trained classifier"):
        ClassifierLogits(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no image classifier with its processor at"):
        ClassifierLogits(str(tmp_path / "nowhere"))


# -- features ----------------------------------------------------------------------------------------------------


def test_dinov2_features_are_class_tokens_of_images_without_mean_and_deviation(dinov2: str) -> None:
    """What the Frechet distance of DeltaConvFusion rests on, and that distance by scipy."""
    extractor = TransformersFeatures(dinov2, size=16, interpolation="bilinear", normalize=False)
    network = Dinov2Model.from_pretrained(dinov2).eval()
    features = []
    for images in (drawn(40, 24, 36), drawn(30, 24, 36) ** 2):
        small = [image.resize((16, 16), Image.Resampling.BILINEAR) for image in pillow(images)]
        pixels = torch.stack([vision.to_dtype(vision.to_image(image), torch.float32, scale=True) for image in small])
        with torch.no_grad():
            features.append(network(pixels).last_hidden_state[:, 0])
        torch.testing.assert_close(extractor(to_uint8(images)), features[-1], atol=0.05, rtol=0)
    (m, a), (n, b) = ((x.mean(0).double().numpy(), np.cov(x.double().numpy(), rowvar=False)) for x in features)
    expected = np.sum((m - n) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    metric = FrechetDistance(extractor).with_reference(in_batches(drawn(40, 24, 36)))
    assert metric.of(in_batches(drawn(30, 24, 36) ** 2)) == {"fd_dinov2-tiny": pytest.approx(expected, rel=0.02)}
    assert extractor.num_features == 16


def test_features_are_prepared_as_the_processor_says_unless_told_otherwise(dinov2: str) -> None:
    images = drawn(3, 24, 36)
    processor, network = AutoImageProcessor.from_pretrained(dinov2), Dinov2Model.from_pretrained(dinov2).eval()
    with torch.no_grad():
        expected = network(**processor(images=pillow(images), return_tensors="pt")).pooler_output
    extractor = TransformersFeatures(dinov2, name="mine")
    torch.testing.assert_close(extractor(to_uint8(images)), expected, atol=0.05, rtol=0)
    others = [TransformersFeatures(dinov2, size=16), TransformersFeatures(dinov2, size=16, normalize=False)]
    assert len({each.identity for each in (extractor, *others)}) == 3
    with pytest.raises(ValueError, match="interpolation and normalize belong to size"):
        TransformersFeatures(dinov2, normalize=False)
    with pytest.raises(FileNotFoundError, match="no vision model with its processor at"):
        TransformersFeatures("nowhere/at-all")


# -- TOPIQ -------------------------------------------------------------------------------------------------------


def test_topiq_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"TOPIQ needs the package pyiqa.*pip install 'sparsight\[topiq\]'"):
        TOPIQ()
    with pytest.raises(ValueError, match="trained_on is 'nobody'; allowed: koniq, flive, spaq"):
        TOPIQ(trained_on="nobody")  # type: ignore[arg-type]


def test_topiq_is_the_mean_of_what_pyiqa_gives(tmp_path: Path) -> None:
    pyiqa = pytest.importorskip("pyiqa")
    file = save_topiq(tmp_path / "topiq.safetensors")
    torch.save({"params": torch.load(_as_torch(file, tmp_path), weights_only=True)}, tmp_path / "theirs.pth")
    images = drawn(3, 64, 96)
    theirs = pyiqa.create_metric(
        "topiq_nr", device="cpu", pretrained_model_path=str(tmp_path / "theirs.pth"), backbone_pretrain=False
    )
    expected = theirs(to_uint8(images).float() / 255).flatten()
    for weights in (file, tmp_path / "theirs.pth"):
        value = TOPIQ(weights=str(weights)).of(in_batches(images, 2))
        assert value == {"topiq_koniq": pytest.approx(float(expected.mean()), rel=1e-4)}
    torch.save({"params": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds another network than topiq_nr"):
        TOPIQ(weights=str(tmp_path / "other.pth"))


def _as_torch(file: Path, folder: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(file), folder / "plain.pth")
    return folder / "plain.pth"
