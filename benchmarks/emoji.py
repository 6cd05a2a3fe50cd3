"""Emoji and their captions, and an independent judge of whether a drawn emoji shows what its caption says.

The judge is put together of a picture encoder and a sentence encoder that never saw each other: a ridge regression from
features of EfficientNet-Lite0 to embeddings of all-MiniLM-L6-v2, fitted to the training emoji.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules import EmojiRecords, ImageDataModule, TransformOptions
from sparsight.diffusion.pipelines.text_encoders import load_text_encoder
from sparsight.evaluation.images import EfficientNetLite0Features
from sparsight.evaluation.images.images import to_uint8

SIZE = 64  # pixels
HELD_OUT = 0.1  # of the emoji, as in experiment/emoji_joint_teacher
CANDIDATES = 16
RIDGES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
FOLDS = 5


@dataclass(frozen=True)
class Emoji:
    """Captioned images: float32 (N, 3, 64, 64) in [0, 1], and N captions."""

    images: Tensor
    captions: list[str]


def emoji() -> tuple[Emoji, Emoji]:
    """The emoji that the text-to-image teacher was trained on, and those that were held out."""
    padded = TransformOptions(fit="pad", background=255)
    data = ImageDataModule(EmojiRecords(), val_share=HELD_OUT, image_size=SIZE, transform=padded, batch_size=100)
    data.setup("fit")
    return _whole(data.datasets["train"]), _whole(data.datasets["val"])


def _whole(records: Any) -> Emoji:
    items = [records[number] for number in range(len(records))]
    images = torch.stack([torch.as_tensor(item["image"]) for item in items])
    return Emoji(images / 2 + 0.5, [str(item["caption"]) for item in items])


@torch.no_grad()
def caption_embeddings(captions: Sequence[str], *, tokens: int = 32) -> Tensor:
    """Embeddings (N, 384) of length 1: the mean of a caption's tokens, as the sentence encoder is meant to be used."""
    tokenizer, encoder = load_text_encoder("all-MiniLM-L6-v2", tokens=tokens)
    found = []
    for start in range(0, len(captions), 100):
        inputs = tokenizer(list(captions[start : start + 100]), padding=True, truncation=True, return_tensors="pt")
        hidden_BLC = encoder(**inputs).last_hidden_state
        mask_BL1 = inputs.attention_mask[..., None].to(hidden_BLC.dtype)
        found.append((hidden_BLC * mask_BL1).sum(1) / mask_BL1.sum(1))
    return F.normalize(torch.cat(found), dim=-1)


class CaptionJudge:
    """Says how well images fit captions.

    Args:
        training: Emoji to fit the regression to; its weight is the one of ``RIDGES`` that finds most captions of
            emoji left out of a fit.
    """

    def __init__(self, training: Emoji) -> None:
        self.extractor = EfficientNetLite0Features()
        features, embeddings = self.features(training.images), caption_embeddings(training.captions)
        self.mean, self.spread = features.mean(0), features.std(0) + 1e-6
        self.middle = embeddings.mean(0)
        features = (features - self.mean) / self.spread
        self.ridge = max(RIDGES, key=lambda ridge: self._found_when_left_out(features, embeddings, ridge))
        self.weight = _regression(features, embeddings - self.middle, self.ridge)

    def _found_when_left_out(self, features: Tensor, embeddings: Tensor, ridge: float) -> float:
        fold = torch.arange(len(features)) % FOLDS
        shares = []
        for each in range(FOLDS):
            weight = _regression(features[fold != each], embeddings[fold != each] - self.middle, ridge)
            said = features[fold == each] @ weight
            shares.append(retrieval(self._fit(said, embeddings[fold == each])))
        return sum(shares) / FOLDS

    def features(self, images: Tensor) -> Tensor:
        """Features (N, 1280) of images in [0, 1]."""
        return torch.cat([self.extractor(to_uint8(part)) for part in images.split(100)])

    def _fit(self, said: Tensor, embeddings: Tensor) -> Tensor:
        return F.normalize(said, dim=-1) @ F.normalize(embeddings - self.middle, dim=-1).T

    def fit(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine (N, M) of each image and each caption, -1 to 1."""
        features = (self.features(images) - self.mean) / self.spread
        return self._fit(features @ self.weight, caption_embeddings(captions))


def _regression(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Weights (F, E) of least squares with a penalty, from as many equations as there are samples."""
    gram = features @ features.T
    return features.T @ torch.linalg.solve(gram + ridge * torch.eye(len(gram)), targets)


def retrieval(fits: Tensor, own: Tensor | None = None) -> float:
    """Share of images whose own caption fits best among 16, 15 of them drawn from the others.

    It is what that comes to over all such draws.

    Args:
        fits: How well each image fits each caption (N, M), M at least 16.
        own: Number of each image's own caption (N,); the numbers of the images if not given.
    """
    own = torch.arange(len(fits)) if own is None else own
    others = fits.shape[1] - 1
    better = (fits > fits.gather(1, own[:, None])).sum(1).tolist()
    return sum(comb(others - k, CANDIDATES - 1) for k in better) / comb(others, CANDIDATES - 1) / len(better)
