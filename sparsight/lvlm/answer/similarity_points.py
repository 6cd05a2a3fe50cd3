"""READ's similarity points: where in an image a token of the text is about (Qian et al., arXiv 2412.17741).

Shape legend: T tokens, N image tokens of a crop, P points, C channels, R, S rows and columns of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsight.lvlm.methods.pictures import Pictures
from sparsight.lvlm.methods.spans import present_tokens, read_tokens
from sparsight.lvlm.model.tower import find_parts


class Points(NamedTuple):
    """Points of one crop of an image.

    Args:
        image: Number of the image in its sample, and ``crop`` of the crop in that.
        places: Across and down (P, 2), as shares of the crop, through which gradients flow.
        is_object: True where the text is about that place, false where it is surely not (P).
        similarity: Of the crop's tokens (R, S); not a number where there is none.
    """

    image: int
    crop: int
    places: Tensor
    is_object: Tensor
    similarity: Tensor


class SimilarityPoints:
    """Finds points of images that the last token of a prompt, or another one, is about, and points that it is not.

    With states h of image tokens and s of that token as they leave the decoder, S = h s. Tokens with S of at least
    mean + epsilon deviations are points of the object, those of at most mean - epsilon deviations of its background.
    A point stands at the mean of all places, weighted by softmax(S) exp(-distance to its token, in cells), through
    which a loss on points reaches the states (the paper's step from discrete to continuous).

    The paper asks a token that was trained for that, and hands the points to SAM's decoder of masks; neither is here.
    Nothing of this has weights: a loss on the points of a mask decoder of your own trains the model.

    Args:
        epsilon: Deviations from the mean that make a point.
    """

    def __init__(self, epsilon: float = 0.5) -> None:
        if epsilon < 0:
            raise ValueError(f"epsilon is from 0; got {epsilon}")
        self.epsilon = epsilon

    def points(self, model: Any, inputs: Mapping[str, Any], asking: Tensor | None = None) -> list[list[Points]]:
        """Points of the crops of every sample.

        Args:
            model: Of a family that recipes serve, and without a recipe.
            inputs: Of its forward pass, padded on either side.
            asking: Which token asks, by its place in ``input_ids`` (B); the last of each sample if not given.

        Raises:
            ValueError: The family is not served.
        """
        parts, ids = find_parts(model), inputs["input_ids"]
        pictures = Pictures(model, parts, [])
        states: list[Tensor] = []
        hook = parts.decoder.register_forward_hook(lambda _module, _args, out: states.append(out[0]))
        try:
            with pictures.watched():
                model(**inputs, use_cache=False)
        finally:
            hook.remove()
        present = present_tokens(inputs.get("attention_mask"), ids)
        family = pictures.family
        tokens = read_tokens(ids, present, image_id=parts.image_token_id, layouts=pictures.layouts, tiles=family.tiles)
        last = tokens.last if asking is None else asking
        found = []
        for sample, states_TC in enumerate(states[-1].float()):
            shown = tokens.visual[sample] & (tokens.row[sample] >= 0)
            crops = torch.stack([tokens.image[sample], tokens.crop[sample]], 1)
            own = []
            for image, crop in crops[shown].unique(dim=0).tolist():
                at = shown & (crops == torch.tensor([image, crop], device=crops.device)).all(1)
                cells_N2 = torch.stack([tokens.column[sample][at], tokens.row[sample][at]], 1)
                similarity_N = states_TC[at] @ states_TC[last[sample]]
                own.append(self._of_crop(image, crop, cells_N2 - cells_N2.amin(0), similarity_N))
            found.append(own)
        return found

    def _of_crop(self, image: int, crop: int, cells_N2: Tensor, similarity_N: Tensor) -> Points:
        mean, deviation = similarity_N.mean(), similarity_N.std(unbiased=False)
        is_object = similarity_N >= mean + self.epsilon * deviation
        chosen = (is_object | (similarity_N <= mean - self.epsilon * deviation)).nonzero()[:, 0]
        size_2 = cells_N2.amax(0) + 1
        places_P2 = continuous(cells_N2.float(), similarity_N, chosen) + 0.5
        grid = similarity_N.new_full((int(size_2[1]), int(size_2[0])), float("nan"))
        grid[cells_N2[:, 1], cells_N2[:, 0]] = similarity_N.detach()
        return Points(image, crop, places_P2 / size_2, is_object[chosen], grid)


def continuous(cells_N2: Tensor, similarity_N: Tensor, chosen_P: Tensor) -> Tensor:
    """Places (P, 2) of chosen tokens in cells, as means of all places that are near and alike.

    Args:
        cells_N2: Where tokens stand.
        similarity_N: How much each is what is asked for.
        chosen_P: Tokens.
    """
    distance_PN = torch.cdist(cells_N2[chosen_P], cells_N2)
    weight_PN = (similarity_N.log_softmax(0) - distance_PN).softmax(1)
    return weight_PN @ cells_N2
