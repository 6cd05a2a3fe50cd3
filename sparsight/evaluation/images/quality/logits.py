"""Classifiers whose logits are the features that classifier scores are computed from."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.features import INCEPTION_SIZE, inception_network, resized_by_tensorflow


class InceptionLogits(FeatureExtractor):
    """The 1008 logits of TensorFlow's Inception-v3 without their bias: what the inception score is defined on.

    Args:
        weights: Local file, torch-fidelity's ``.pth`` or safetensors; torch-fidelity's release is downloaded if not
            given, and its hash checked.

    Raises:
        FileNotFoundError: There is no such weights file.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__(
            inception_network(weights, classifier=True),
            name="inception",
            preprocessing=f"resized to {INCEPTION_SIZE} px (bilinear, no antialias), (x - 128) / 128, logits",
        )

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, 1008)."""
        return self.network((resized_by_tensorflow(images_BCHW.float()) - 128) / 128)


class ClassifierLogits(FeatureExtractor):
    """The logits of an image classifier of transformers, on images as its image processor brings them.

    ``facebook/dinov2-large-imagenet1k-1-layer``, DINOv2 with a linear classifier of ImageNet, is what the DINO score of
    DeltaConvFusion is computed from.

    Args:
        model: Hub id or local folder, with its image processor.
        revision: Git revision on the hub.
        name: Short name for logs; the last part of ``model`` if not given.

    Raises:
        FileNotFoundError: There is no such folder or hub id.
        ValueError: It is no image classifier.
    """

    def __init__(self, model: str, revision: str | None = None, name: str | None = None) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        try:
            with torch.random.fork_rng(devices=[]):
                network, told = AutoModelForImageClassification.from_pretrained(
                    model, revision=revision, dtype=torch.float32, output_loading_info=True
                )
            self.processor = AutoImageProcessor.from_pretrained(model, revision=revision)
        except OSError as error:
            raise FileNotFoundError(f"no image classifier with its processor at {model!r}: {error}") from error
        if told["missing_keys"]:
            raise ValueError(f"{model!r} has no weights of {min(told['missing_keys'])}: it is no trained classifier")
        steps = {step: value for step, value in self.processor.to_dict().items() if value is not None}
        super().__init__(
            network,
            name=name or model.rstrip("/").rpartition("/")[2].lower(),
            preprocessing=json.dumps(steps, sort_keys=True),
        )

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        pixels = self.processor(images=list(images_BCHW), return_tensors="pt")["pixel_values"]
        return self.network(pixel_values=pixels.to(images_BCHW.device)).logits
