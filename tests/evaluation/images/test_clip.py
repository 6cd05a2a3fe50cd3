"""The CLIP score against one written by hand on the model's parts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize, resize
from transformers import AutoModel, CLIPModel

from sparsight.evaluation.images import CLIPFeatures, CLIPScore, Samples
from sparsight.evaluation.images.images import to_uint8
from tests import tiny_networks

START, END = 52, 53


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_networks.save_clip(tmp_path_factory.mktemp("models") / "Tiny-CLIP"))


def letters(caption: str) -> list[int]:
    """Tokens of the tiny tokenizer: letters, of which a word's last one counts 26 higher."""
    return [ord(letter) - 97 + 26 * (i == len(word) - 1) for word in caption.split() for i, letter in enumerate(word)]


@torch.no_grad()
def cosines(folder: str, images: Tensor, captions: Sequence[str]) -> Tensor:
    """Cosine of each square image of 24 pixels and its caption of at most 6 letters, without processor or padding."""
    model = CLIPModel.from_pretrained(folder).eval()
    small = resize(to_uint8(images), [16, 16], interpolation=3, antialias=True).float() / 255
    seen = normalize(small, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    image_BF = model.visual_projection(model.vision_model(seen).pooler_output)
    rows = []
    for caption, image_F in zip(captions, image_BF, strict=True):
        tokens = torch.tensor([[START, *letters(caption), END]])
        text_F = model.text_projection(model.text_model(tokens).last_hidden_state[0, -1])
        rows.append((image_F @ text_F) / image_F.norm() / text_F.norm())
    return torch.stack(rows)


CAPTIONS = ["a cat", "no dog", "x", "boat", "my hat", "zz"]


def test_the_score_is_the_mean_positive_cosine_times_100(clip: str) -> None:
    images = torch.rand(6, 3, 24, 24)
    expected = cosines(clip, images, CAPTIONS)
    assert (expected > 0).any() and (expected < 0).any(), "both kinds are needed to see the clamp"
    metric = CLIPScore(clip)
    ids = torch.arange(6)
    batches = [Samples(images[:4], ids[:4], CAPTIONS[:4]), Samples(images[4:], ids[4:], CAPTIONS[4:])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = metric.of(batches)
    assert value == {"clip_score_tiny-clip": pytest.approx(100 * float(expected.clamp_min(0).mean()), abs=0.02)}
    assert metric.of(batches) == value


def test_a_prefix_stands_before_every_caption(clip: str) -> None:
    images = torch.rand(2, 3, 24, 24)
    expected = 100 * float(cosines(clip, images, ["a x", "a dog"]).clamp_min(0).mean())
    metric = CLIPScore(clip, prefix="a ", name="short")
    assert metric.of([Samples(images, torch.arange(2), ["x", "dog"])])["clip_score_short"] == pytest.approx(
        expected, abs=0.02
    )
    assert "begin with 'a '" in metric.protocol


def test_long_captions_are_cut_before_their_end_token_and_counted(clip: str) -> None:
    images = torch.rand(3, 3, 24, 24)
    long = ["abcdefgh", "cat", "hello world"]
    metric = CLIPScore(clip)
    with pytest.warns(UserWarning, match="2 of 3 captions have more than the 8 tokens"):
        metric.of([Samples(images, torch.arange(3), long)])
    features, cut = metric.extractor.text(["abcdefgh"])
    model = CLIPModel.from_pretrained(clip).eval()
    tokens = torch.tensor([[START, 0, 1, 2, 3, 4, 5, END]])
    with torch.no_grad():
        expected = model.text_projection(model.text_model(tokens).last_hidden_state[:, -1])
    torch.testing.assert_close(features, expected)
    assert cut == 1


def test_captions_are_needed(clip: str) -> None:
    with pytest.raises(ValueError, match="needs captions"):
        CLIPScore(clip).of([Samples(torch.rand(1, 3, 24, 24), torch.arange(1))])


def test_image_features_do_not_depend_on_neighbours_or_channels(clip: str) -> None:
    extractor = CLIPFeatures(clip)
    assert (extractor.num_features, extractor.max_tokens, extractor.name) == (8, 8, "tiny-clip")
    images = torch.randint(0, 256, (3, 1, 20, 28), dtype=torch.uint8)
    features = extractor(images)
    torch.testing.assert_close(features[1:2], extractor(images[1:2].expand(-1, 3, -1, -1)))
    assert not any(p.requires_grad for p in extractor.parameters())


def test_whole_images_are_seen_without_a_crop(clip: str) -> None:
    whole, cropping = CLIPFeatures(clip, whole=True), CLIPFeatures(clip)
    square, wide = (torch.randint(0, 256, (2, 3, 40, width), dtype=torch.uint8) for width in (40, 60))
    torch.testing.assert_close(whole(square), cropping(square))
    small = resize(wide, [16, 16], interpolation=3, antialias=True)
    torch.testing.assert_close(whole(wide), cropping(small), atol=0.02, rtol=0)
    assert (whole(wide) - cropping(wide)).abs().max() > 0.1
    assert whole.identity != cropping.identity


def test_models_that_are_no_clip_are_refused(tmp_path: Path, clip: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no CLIP model with tokenizer and processor at '\./nowhere'"):
        CLIPFeatures("./nowhere")
    folder = tmp_path / "vision"
    tiny_networks.save_clip(folder)
    AutoModel.from_pretrained(clip).vision_model.save_pretrained(folder)
    with pytest.raises(ValueError, match="has no features of images and texts"):
        CLIPFeatures(str(folder))
