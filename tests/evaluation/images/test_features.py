"""Feature extractors against the libraries' own preprocessing and networks, with weights made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from sparsight.evaluation.images import (
    ClassifierScore,
    EfficientNetLite0Features,
    InceptionFeatures,
    InceptionLogits,
    TimmFeatures,
    in_batches,
)
from tests import tiny_networks
from tests.tiny_features import Quarters


def pictures(count: int = 2, side: int = 48) -> Tensor:
    """Smooth uint8 RGB images."""
    rough = torch.rand(count, 3, 6, 6)
    return (torch.nn.functional.interpolate(rough, (side, side), mode="bilinear") * 255).round().to(torch.uint8)


class RandomInception(FeatureExtractorInceptionV3):
    """torch-fidelity's network, left as it was initialised."""

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        return None


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[RandomInception, Path]:
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = RandomInception(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(folder / "empty.pth")
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(pictures(2))  # normalised by what it saw: else nothing of an image is left after 90 random layers
    save_file(network.eval().state_dict(), folder / "weights.safetensors")
    torch.save(network.state_dict(), folder / "weights.pth")
    return network, folder


def test_inception_is_that_of_torch_fidelity(inception: tuple[RandomInception, Path]) -> None:
    network, folder = inception
    images = pictures()
    expected = network(images)[0]
    assert (expected[0] - expected[1]).abs().mean() > 1e-2, "the comparison means nothing if all images look alike"
    extractor = InceptionFeatures(str(folder / "weights.safetensors"))
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert extractor.name == "inception"
    assert extractor.identity == InceptionFeatures(str(folder / "weights.pth")).identity


def test_inception_logits_are_those_of_torch_fidelity_without_bias(inception: tuple[RandomInception, Path]) -> None:
    network, folder = inception
    images = pictures()
    expected = network(images)[1]
    extractor = InceptionLogits(str(folder / "weights.safetensors"))
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert (extractor.name, extractor.num_features) == ("inception", 1008)
    assert list(ClassifierScore(extractor, splits=2).of(in_batches(torch.rand(2, 3, 32, 32)))) == [
        "is_inception",
        "is_inception_std",
    ]


def test_clean_inception_sees_what_pillow_resizes(inception: tuple[RandomInception, Path]) -> None:
    _, folder = inception
    image = pictures(1, side=400)
    extractor = InceptionFeatures(str(folder / "weights.safetensors"), resize="clean")
    channels = [Image.fromarray(c.float().numpy(), mode="F").resize((299, 299), Image.BICUBIC) for c in image[0]]
    seen: list[Tensor] = []
    extractor.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    features = extractor(image)
    expected = (torch.from_numpy(np.stack(channels))[None].clamp(0, 255) - 128) / 128
    torch.testing.assert_close(seen[0], expected, atol=5e-3, rtol=0)
    assert extractor.name == "inception_clean" and features.shape == (1, 2048)
    with pytest.raises(ValueError, match="allowed: tensorflow, clean"):
        InceptionFeatures(str(folder / "weights.safetensors"), resize="other")  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_timm_features_are_those_of_timm(model: str, tmp_path: Path) -> None:
    weights = tiny_networks.save_timm(tmp_path / "weights.safetensors", model)
    extractor = TimmFeatures(model, weights=str(weights))
    network = timm.create_model(model, pretrained=False, num_classes=0).eval()
    network.load_state_dict(load_file(weights), strict=False)
    images = pictures(side=160)
    config = timm.data.resolve_model_data_config(network)
    transform = create_transform(**config | {"crop_pct": 1.0}, is_training=False)
    seen = torch.stack([transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images])
    with torch.no_grad():
        torch.testing.assert_close(extractor(images), network(seen), rtol=1e-4, atol=1e-5)
    assert extractor.name == model


def test_timm_transformers_take_another_size(tmp_path: Path) -> None:
    weights = str(tiny_networks.save_timm(tmp_path / "weights.safetensors"))
    small = TimmFeatures("test_vit", weights=weights, size=64, name="mine")
    assert small.name == "mine" and small(pictures(side=20)).shape == (2, 64)
    assert small.identity != TimmFeatures("test_vit", weights=weights).identity


def test_wrong_or_missing_weights_are_refused(tmp_path: Path) -> None:
    other = str(tiny_networks.save_timm(tmp_path / "other.safetensors", "test_resnet"))
    with pytest.raises(ValueError, match=r"cannot make 'test_vit'.*other\.safetensors"):
        TimmFeatures("test_vit", weights=other)
    with pytest.raises(ValueError, match="no_such_model"):
        TimmFeatures("no_such_model", weights=other)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        InceptionFeatures("nowhere.pth")
    torch.save({"weights": Path("a pickle that could hold anything")}, tmp_path / "pickle.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        TimmFeatures("test_vit", weights=str(tmp_path / "pickle.pth"))


def test_extractors_are_frozen_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    extractor = EfficientNetLite0Features(size=64)
    assert torch.equal(state, torch.get_rng_state())
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    features = extractor(grey)
    assert features.shape == (2, 1280) == (2, extractor.num_features)
    torch.testing.assert_close(features, extractor(grey.expand(-1, 3, -1, -1)))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(extractor(grey), features)
    assert (features[0] - features[1]).norm() > 0.1
    with pytest.raises(ValueError, match="to_uint8"):
        extractor(grey.float())


def test_identity_tells_weights_and_preprocessing_apart() -> None:
    assert Quarters().identity == Quarters().identity
    assert Quarters().identity != Quarters(weight=2.0).identity
    other = Quarters()
    other.preprocessing = "x / 256"
    assert other.identity != Quarters().identity
