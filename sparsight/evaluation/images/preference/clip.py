"""Preference models that are tuned CLIPs: PickScore and HPSv2."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.common.disk.weights import find_weights, load_weights
from sparsight.evaluation.images.clip import CLIPAgreement, CLIPFeatures
from sparsight.evaluation.images.preference.open_clip import as_transformers, check_fits


class PickScore(CLIPAgreement):
    """exp(logit scale) x cos(image, caption) by a CLIP tuned on choices of people (Kirstain et al., arXiv 2305.01569).

    The mean over samples; the published scale is about 100, so that papers print values near 21. Only differences
    between images of one caption mean something.

    Args:
        model: Hub id or local folder of the tuned CLIP, in transformers' layout with tokenizer and image processor.
        revision: Git revision on the hub.

    Raises:
        FileNotFoundError: There is no such folder or hub id.
        ValueError: The model is not CLIP-like.

    Examples:
        >>> metric = PickScore(clip)  # clip: a folder or hub id
        >>> [*metric.of([Samples(drawn, torch.arange(len(drawn)), ["a cat"] * len(drawn))])]
        ['pick_score']
    """

    title = "PickScore"

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1", revision: str | None = None) -> None:
        super().__init__(CLIPFeatures(model, revision=revision))
        self.scale = float(self.extractor.network.logit_scale.exp())

    @property
    def protocol(self) -> str:
        """The model and its scale."""
        return f"PickScore by {self.extractor.name}, {self.scale:g} x cosine"

    def score(self, cosine_B: Tensor) -> Tensor:
        """Scaled cosines."""
        return self.scale * cosine_B

    def compute(self) -> dict[str, Tensor]:
        """``pick_score``; warns of captions that were cut."""
        return {"pick_score": self.mean()}


class HPSFeatures(CLIPFeatures):
    """Features of HPSv2's CLIP: images are brought to the model's square by their longer side, and padded with black.

    Args:
        model: CLIP that tells architecture, tokenizer and mean and deviation: hub id or local folder. Without
            ``weights`` it is the tuned one itself.
        weights: HPSv2's own checkpoint in open_clip's names: a local file, or one on the hub as ``owner/name/file``.
        revision: Git revision on the hub, of ``model``.
        name: Short name for logs.

    Raises:
        FileNotFoundError: There is no such folder, file or hub id.
        ValueError: The checkpoint does not fit the architecture.
    """

    def __init__(
        self, model: str, weights: str | None = None, revision: str | None = None, name: str | None = None
    ) -> None:
        self.weights = weights
        super().__init__(model, revision=revision, name=name)
        processor = json.loads(self.preprocessing)
        self.mean, self.std = processor["image_mean"], processor["image_std"]
        self.side: int = self.network.config.vision_config.image_size
        resizing = f"longer side to {self.side} px (bicubic, antialias), padded with black"
        self.preprocessing = f"{resizing}, mean {self.mean}, deviation {self.std}"

    def load_network(self, model: str, *, revision: str | None) -> Any:
        """The network with its weights; a torch file is read with ``weights_only``."""
        if self.weights is None:
            return super().load_network(model, revision=revision)
        from transformers import AutoConfig, CLIPModel

        state = load_weights(find_weights(self.weights))
        tuned = as_transformers(state.get("state_dict", state))  # type: ignore[arg-type]  # training kept it in a field
        with torch.random.fork_rng(devices=[]):
            network = CLIPModel(AutoConfig.from_pretrained(model, revision=revision)).float()
        check_fits(tuned, network, source=self.weights)
        network.load_state_dict(tuned)
        return network

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Image features (B, F), not normalised."""
        height, width = images_BCHW.shape[-2:]
        scale = self.side / max(height, width)
        size = (round(height * scale), round(width * scale))
        x = images_BCHW.float() / 255
        if scale != 1:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
        rows, columns = self.side - size[0], self.side - size[1]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.features((x - mean) / std)


class HPSv2(CLIPAgreement):
    """100 x cos(image, caption) under a CLIP ViT-H/14 tuned on choices of people (Wu et al., arXiv 2306.09341).

    The mean over samples. Version 2.1 is ``weights: xswu/HPSv2/HPS_v2.1_compressed.pt``, version 2.0 its neighbour
    ``HPS_v2_compressed.pt``: their values are not comparable. Papers print 28.5, the released code 0.285.

    Args:
        weights: The checkpoint in open_clip's names: a local file, safetensors or torch, or one on the hub as
            ``owner/name/file``. ``null`` where ``model`` itself is the tuned one.
        model: CLIP that tells architecture and tokenizer, or holds the weights: hub id or local folder.
        revision: Git revision on the hub, of ``model``.
        name: Version, part of the logged name.

    Raises:
        FileNotFoundError: There is no such folder, file or hub id.
        ValueError: The checkpoint does not fit the architecture.

    Examples:
        >>> metric = HPSv2(weights=None, model=clip)  # clip: a folder or hub id
        >>> [*metric.of([Samples(drawn, torch.arange(len(drawn)), ["a cat"] * len(drawn))])]
        ['hps_v2.1']
    """

    title = "HPSv2"

    def __init__(
        self,
        weights: str | None = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        model: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        revision: str | None = None,
        name: str = "v2.1",
    ) -> None:
        super().__init__(HPSFeatures(model, weights, revision=revision, name=f"hps_{name}"))

    @property
    def protocol(self) -> str:
        """The model."""
        return f"HPSv2, 100 x cosine of {self.extractor.name} ({self.extractor.preprocessing})"

    def score(self, cosine_B: Tensor) -> Tensor:
        """100 x cosine."""
        return 100 * cosine_B

    def compute(self) -> dict[str, Tensor]:
        """``hps_<version>``; warns of captions that were cut."""
        return {f"{self.extractor.name}": self.mean()}
