"""ViCrop: the part of an image that a question is about is shown once more (Zhang et al., arXiv 2502.17422).

Shape legend: T tokens, R rows and K columns of an image's grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.edits.base import LogitEdit
from blocks.tokens.attending import Attending
from sparsight.common.plain import setting
from sparsight.lvlm.chat.put import Put

GENERAL = "Write a general description of the image."
Box = tuple[int, int, int, int]  # left, top, right and bottom, in pixels


class ViCropLook(LogitEdit):
    """Remembers how a prompt's last token attends in a layer, mean over heads, and changes nothing."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def at(self, layer: int, depth: int) -> bool:
        """There."""
        return layer == self.layer

    def bias(self, attending: Attending) -> Tensor:
        """Nothing."""
        return attending.query.new_zeros(1, 1, 1, 1)

    def measure(self, attending: Attending, layer: int) -> None:
        """Remember it, and where the tokens of the first image stand."""
        row_T, tokens = attending.last().weights()[0, :, 0].mean(0), attending.keys
        shown = (tokens.image[0] == 0) & (tokens.crop[0] == 0) & (tokens.row[0] >= 0)
        if not bool(shown.any()):
            raise ValueError("ViCrop looks for a part of an image, and the prompt has none")
        row, column = tokens.row[0, shown], tokens.column[0, shown]
        self.map_RK = row_T.new_zeros(int(row.max()) + 1, int(column.max()) + 1)
        self.map_RK[row, column] = row_T[shown]


@dataclass(frozen=True)
class ViCrop:
    """Finds where a model looks for a question more than for a general one, and shows that part as a second image.

    The measure is the ratio of both attentions, in one layer, of the prompt's last token on the tokens of the whole
    image. Of windows of several sizes the one is taken whose sum stands out most from those of its neighbours, over its
    size. Two short passes more, each with one row of attention; the answer then reads two images. Images of more than
    1024 pixels, which the authors look at piece by piece, are looked at as a whole.

    Args:
        layer: Whose attention; the paper takes 14 of 32.
        side: Of the smallest window, in pixels of the image; what the model sees of an image at once, if not given.
        ratios: Sizes of windows, over that of the smallest.
        general: The general question.

    Raises:
        ValueError: A number is out of range.
    """

    layer: int = 14
    side: int | None = None
    ratios: Sequence[float] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    general: str = GENERAL

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if not self.ratios or min(self.ratios) <= 0 or (self.side is not None and self.side < 1):
            raise ValueError(f"ratios are above 0 and side from 1; got {list(self.ratios)} and {self.side}")

    def check(self, model: Any) -> None:
        """See that it can work in a model.

        Raises:
            ValueError: The model is not served, does not have the layer, or does not say how much it sees at once.
        """
        from sparsight.lvlm.methods.recipe import Recipe  # imports models of transformers

        Recipe([ViCropLook(self.layer)]).check(model)
        if self.side is None:
            _side(model)

    def inputs(self, model: Any, processor: Any, image: Any, question: str) -> tuple[dict[str, Any], Box]:
        """Inputs of the model with the image and the part, and where that is.

        Args:
            model: Of ``AutoModelForImageTextToText``, in eval mode, of a family that recipes serve.
            processor: Its processor.
            image: A PIL image.
            question: About it.

        Raises:
            ValueError: The model is not served, or does not have the layer.
        """
        box = self.box(model, processor, image, question)
        return _prompt(model, processor, [image, image.crop(box)], question), box

    def box(self, model: Any, processor: Any, image: Any, question: str) -> Box:
        """Where the question is about; arguments as of ``inputs``."""
        asked, general = (self._attention(model, processor, image, text) for text in (question, self.general))
        seen = _visible(processor, image.size)
        width, height = seen[2] - seen[0], seen[3] - seen[1]
        side = self.side or _side(model)
        rows, columns = asked.shape
        left, top, right, bottom = best_window(
            asked / general.clamp(min=torch.finfo(general.dtype).tiny),
            [(side * ratio / height * rows, side * ratio / width * columns) for ratio in self.ratios],
        )
        return (
            seen[0] + int(left * width / columns),
            seen[1] + int(top * height / rows),
            seen[0] + -int(-right * width // columns),
            seen[1] + -int(-bottom * height // rows),
        )

    def once_more(self, model: Any, processor: Any, put: Put) -> Put:
        """A question with the part of its first image that it is about behind that; as it is where it has no image."""
        if not put.images:
            return put
        image = put.images[0]
        return put.beside_first(image.crop(self.box(model, processor, image, put.text)))

    @torch.no_grad()
    def _attention(self, model: Any, processor: Any, image: Any, question: str) -> Tensor:
        from sparsight.lvlm.methods.recipe import Recipe

        look = ViCropLook(self.layer)
        with Recipe([look]).on(model):
            model(**_prompt(model, processor, [image], question))
        return look.map_RK


def best_window(ratio_RK: Tensor, sizes: Sequence[tuple[float, float]]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the window that stands out, in tokens.

    Args:
        ratio_RK: What windows sum up.
        sizes: Rows and columns of windows, rounded down, at least one and at most all.
    """
    best, found = -float("inf"), (0, 0, ratio_RK.shape[1], ratio_RK.shape[0])
    for rows, columns in sizes:
        size = (min(max(int(rows), 1), ratio_RK.shape[0]), min(max(int(columns), 1), ratio_RK.shape[1]))
        sums = F.avg_pool2d(ratio_RK[None, None].double(), size, 1)[0, 0] * (size[0] * size[1])
        top, left = divmod(int(sums.argmax()), sums.shape[1])
        around = sums[max(top - 1, 0) : top + 2, max(left - 1, 0) : left + 2]
        peak = sums[top, left]
        others = around.numel() - 1
        apart = float((peak - (around.sum() - peak) / others) / (size[0] * size[1])) if others else 0.0
        if apart > best:
            best, found = apart, (left, top, left + size[1], top + size[0])
    return found


def _prompt(model: Any, processor: Any, images: Sequence[Any], question: str) -> dict[str, Any]:
    """A processor's inputs of images and a question, on the model's device."""
    if processor.chat_template is None:
        text = f"{processor.image_token}\n" * len(images) + question
    else:
        parts = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = processor(images=list(images), text=[text], return_tensors="pt")
    return {name: value.to(model.device) for name, value in dict(inputs).items()}


def _visible(processor: Any, size: tuple[int, int]) -> Box:
    """The part of an image of a size that a processor does not cut off."""
    width, height = size
    if not setting(processor.image_processor, "do_center_crop"):
        return (0, 0, width, height)
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)


def _side(model: Any) -> int:
    """Side of what a model sees at once, in pixels.

    Raises:
        ValueError: Its configuration does not say.
    """
    found = setting(setting(model.config, "vision_config"), "image_size")
    found = found[0] if isinstance(found, (list, tuple)) else found
    if not isinstance(found, int):
        raise ValueError(f"{model.config.model_type} does not say how large its images are: give ViCrop a side")
    return found
