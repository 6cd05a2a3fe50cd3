"""CLIP-like models of transformers: image features, text features and the CLIP score."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.common.finite import check_rows
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.mean import CaptionScore
from sparsight.evaluation.images.samples import Samples


@runtime_checkable
class OfImagesAndTexts(Protocol):
    """A network that puts images and texts into one space."""

    def get_image_features(self, **inputs: Any) -> Any:
        """Features of images."""
        ...

    def get_text_features(self, **inputs: Any) -> Any:
        """Features of texts."""
        ...


class CLIPFeatures(FeatureExtractor):
    """Image features of a CLIP-like model, and text features in the same space.

    Args:
        model: Hub id or local folder of a transformers model with ``get_image_features`` and ``get_text_features``
            (CLIP, SigLIP, AltCLIP ...), with its tokenizer and image processor.
        revision: Git revision on the hub.
        name: Short name for logs; the last part of ``model`` if not given.
        whole: Resize whole images to the model's square (bicubic, antialiased), as CMMD does, in the place of the image
            processor's resizing and crop. Equal for square images but for rounding.

    Attributes:
        max_tokens: Tokens that a caption may have.

    Raises:
        FileNotFoundError: There is no such folder or hub id.
        ValueError: The model is not CLIP-like.
    """

    def __init__(self, model: str, revision: str | None = None, name: str | None = None, whole: bool = False) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        try:
            network = self.load_network(model, revision=revision)
            tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            processor = AutoImageProcessor.from_pretrained(model, revision=revision)
        except OSError as error:
            raise FileNotFoundError(f"no CLIP model with tokenizer and processor at {model!r}: {error}") from error
        served = isinstance(network, OfImagesAndTexts)
        if not served:
            raise ValueError(f"{model!r} is a {type(network).__name__}, which has no features of images and texts")
        self.resizing: dict[str, Any] = {}
        if whole:
            side = network.config.vision_config.image_size
            self.resizing = {"size": {"height": side, "width": side}, "do_center_crop": False}
        steps = {name: step for name, step in {**processor.to_dict(), **self.resizing}.items() if step is not None}
        super().__init__(
            network,
            name=name or model.rstrip("/").rpartition("/")[2].lower(),
            preprocessing=json.dumps(steps, sort_keys=True),
        )
        self.tokenizer, self.processor = tokenizer, processor
        self.max_tokens = min(tokenizer.model_max_length, network.config.text_config.max_position_embeddings)

    def load_network(self, model: str, *, revision: str | None) -> Any:
        """The network with its weights; transformers reads torch files with ``weights_only``."""
        from transformers import AutoModel

        with torch.random.fork_rng(devices=[]):
            return AutoModel.from_pretrained(model, revision=revision, dtype=torch.float32)

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Image features (B, F), not normalised."""
        pixels = self.processor(images=list(images_BCHW), return_tensors="pt", **self.resizing)["pixel_values"]
        return self.features(pixels.to(images_BCHW.device))

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Image features (B, F) of pixels as the network takes them."""
        return _pooled(self.network.get_image_features(pixel_values=pixels_BCHW))

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> tuple[Tensor, int]:
        """Text features (B, F), not normalised, and how many captions were cut to ``max_tokens``.

        The cut keeps the end token, where CLIP reads the caption's feature; padding is always to the full length, so
        that a caption's feature does not depend on its neighbours.
        """
        whole = self.tokenizer(list(captions), verbose=False)["input_ids"]
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        device = next(self.parameters()).device
        with torch.autocast(device.type, enabled=False):
            features = self.network.get_text_features(**tokens.to(device))
        return _pooled(features).float(), sum(len(ids) > self.max_tokens for ids in whole)


def _pooled(features: Any) -> Tensor:
    """The features themselves: transformers 5 wraps them in a model output."""
    return features if isinstance(features, Tensor) else features.pooler_output


class CLIPAgreement(CaptionScore):
    """Mean of something that the cosine between image and caption decides.

    Args:
        extractor: Makes features of both.
        prefix: Put before every caption.
    """

    extractor: CLIPFeatures

    def __init__(self, extractor: CLIPFeatures, prefix: str = "") -> None:
        super().__init__()
        self.extractor, self.prefix = extractor, prefix
        self.max_tokens = extractor.max_tokens

    @abstractmethod
    def score(self, cosine_B: Tensor) -> Tensor:
        """Scores (B,) of cosines."""

    def rate(self, samples: Samples, captions: Sequence[str]) -> tuple[Tensor, int]:
        """Scores (B,), and how many captions were cut."""
        text_BF, truncated = self.extractor.text([self.prefix + caption for caption in captions])
        check_rows({f"{self.extractor.name} features": text_BF}, samples.index, "captions")
        cosine_B = F.cosine_similarity(samples.features(self.extractor).double(), text_BF.double())
        return self.score(cosine_B), truncated


class CLIPScore(CLIPAgreement):
    """100 max(cos(image, caption), 0), mean over samples (Hessel et al., arXiv 2104.08718, without its factor 2.5).

    Papers that report 0.32 mean the cosine, which is 32 here. torchmetrics' metric of this name crashes on
    transformers 5, and cuts long captions before their end token, from which CLIP reads them.

    Args:
        model: Hub id or local folder of a CLIP-like transformers model.
        revision: Git revision on the hub.
        prefix: Put before every caption; Hessel et al. and the COCO protocols have ``"A photo depicts "``.
        name: Short name for logs; the last part of ``model`` if not given.

    Examples:
        >>> metric = CLIPScore(clip)  # clip: a folder or hub id
        >>> values = metric.of([Samples(drawn, torch.arange(len(drawn)), ["a cat"] * len(drawn))])
        >>> 0 <= values["clip_score_tiny-clip"] <= 100
        True
    """

    title = "CLIP score"

    def __init__(self, model: str, revision: str | None = None, prefix: str = "", name: str | None = None) -> None:
        super().__init__(CLIPFeatures(model, revision=revision, name=name), prefix)

    @property
    def protocol(self) -> str:
        """The model, and what is put before captions."""
        return f"100 x cosine of {self.extractor.name}" + (f", captions begin with {self.prefix!r}" * bool(self.prefix))

    def score(self, cosine_B: Tensor) -> Tensor:
        """100 x cosine, negative ones as 0."""
        return 100 * cosine_B.clamp(0, 1)

    def compute(self) -> dict[str, Tensor]:
        """The mean, between 0 and 100; warns of captions that were cut."""
        return {f"clip_score_{self.extractor.name}": self.mean()}
