"""ImageReward: a BLIP that was trained to tell which image people prefer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsight.common.disk.weights import find_weights, load_weights
from sparsight.evaluation.images.mean import CaptionScore
from sparsight.evaluation.images.preference.blip import RewardNetwork
from sparsight.evaluation.images.samples import Samples

_TOKENS = 35
_MEAN, _DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the rewards of the training set


class ImageReward(CaptionScore):
    """Reward of image and caption by BLIP (Xu et al., arXiv 2304.05977), about 0 on average and 1 in deviation, mean.

    Images go to the model's size by their shorter side (bicubic) and a central crop; captions are cut to 35 tokens.

    Args:
        weights: The published checkpoint: a local file, safetensors or torch, or one on the hub as ``owner/name/file``.
        tokenizer: Hub id or local folder of BERT's tokenizer.

    Raises:
        FileNotFoundError: There is no such file, folder or hub id.
        ValueError: The checkpoint is of another network.

    Examples:
        >>> metric = ImageReward(reward, tokenizer=bert)  # reward: a file; bert: a folder or hub id
        >>> [*metric.of([Samples(drawn, torch.arange(len(drawn)), ["a cat"] * len(drawn))])]
        ['image_reward']
    """

    title = "ImageReward"
    max_tokens = _TOKENS

    def __init__(self, weights: str = "THUDM/ImageReward/ImageReward.pt", tokenizer: str = "bert-base-uncased") -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor

        super().__init__()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except OSError as error:
            raise FileNotFoundError(f"no tokenizer at {tokenizer!r}: {error}") from error
        self.network = RewardNetwork(load_weights(find_weights(weights)), source=weights).requires_grad_(False).eval()
        side = self.network.image_size
        self.processor = CLIPImageProcessor(  # its mean, deviation and interpolation are those of ImageReward
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @property
    def protocol(self) -> str:
        """What it is."""
        return f"ImageReward, images of {self.network.image_size} px, captions of {_TOKENS} tokens"

    @torch.no_grad()
    def rate(self, samples: Samples, captions: Sequence[str]) -> tuple[Tensor, int]:
        """Rewards (B,), and how many captions were cut."""
        whole = self.tokenizer(list(captions), verbose=False)["input_ids"]
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
        )
        rgb_BCHW = samples.pixels.expand(-1, 3, -1, -1)
        pixels = self.processor(images=list(rgb_BCHW), return_tensors="pt")["pixel_values"].to(rgb_BCHW.device)
        with torch.autocast(rgb_BCHW.device.type, enabled=False):
            rewards_B = self.network(pixels.float(), tokens.to(rgb_BCHW.device))
        return (rewards_B - _MEAN) / _DEVIATION, sum(len(ids) > _TOKENS for ids in whole)

    def compute(self) -> dict[str, Tensor]:
        """``image_reward``; warns of captions that were cut."""
        return {"image_reward": self.mean()}
