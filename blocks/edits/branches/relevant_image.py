"""AGLA: what an image that shows the relevant parts alone says is added (An et al., arXiv 2406.12718).

Shape legend: N tokens of a crop, Q words, C channels, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blocks.edits.base import BranchDecoder, between, plausible
from blocks.tokens.base import Crop, FeatureReducer, Reduction, kept, share


class _Relevant(FeatureReducer):
    """A share of the tokens of each crop, those most like the question."""

    keeps_marks = False

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def reduce(self, crop: Crop) -> Reduction:
        """The likest, in their order; all tokens alike where there is no question."""
        assert crop.text is not None
        features_NC, text_QC = (F.normalize(part.detach().float(), dim=-1) for part in (crop.features, crop.text))
        likeness_N = (features_NC @ text_QC.T).sum(1)
        count = kept(len(likeness_N), self.ratio)
        return Reduction(likeness_N.sort(descending=True, stable=True).indices[:count].sort().values)


class RelevantImage(BranchDecoder):
    """Adds what a second pass says that sees only the parts of the image that the question is about (AGLA).

    The paper finds them by the gradient of another model, BLIP's matcher of images and texts, and blackens the other
    pixels. Here that model is not needed: parts are image tokens, relevant by the sum of their cosines with the
    question's words before the decoder, and the others are left out.

    Args:
        alpha: l + alpha l_a, of logits of the whole image and of its relevant parts (a).
        beta: Words less likely than this share of the likeliest are left out.
        ratio: Share of tokens that the second pass sees.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 0.5, ratio: float = 0.5) -> None:
        self.alpha, self.beta, self.ratio = alpha, between(beta, 0, 1, name="beta"), share(ratio, name="ratio")

    def reducer(self) -> FeatureReducer:
        """The relevant parts alone."""
        return _Relevant(self.ratio)

    def combine(self, logits: Tensor, second: Tensor) -> Tensor:
        """Both, weighted."""
        return plausible(logits, logits + self.alpha * second, beta=self.beta)
