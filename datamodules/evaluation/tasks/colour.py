"""The colour that an image mostly has."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from datamodules.conversations.instruction_dataset import BACKGROUND
from datamodules.evaluation.tasks.distractors import arranged
from datamodules.evaluation.tasks.reformulated import ReformulatedTask, check_options
from datamodules.images.image_dataset import flatten_image
from datamodules.sources.records import Record, RecordSource
from sparsight.evaluation.reform_eval.sample import Sample

# Colour: hue in degrees (beyond 360 is red again), saturation and value in percent. What lies between two boxes, such
# as turquoise, is left without a name, so that people agree on what has one.
BOXES: tuple[tuple[str, tuple[int, int], tuple[int, int], tuple[int, int]], ...] = (
    ("black", (0, 360), (0, 100), (0, 20)),
    ("grey", (0, 360), (0, 12), (42, 80)),
    ("white", (0, 360), (0, 8), (93, 100)),
    ("red", (348, 370), (60, 100), (60, 100)),
    ("orange", (20, 38), (65, 100), (80, 100)),
    ("brown", (8, 40), (30, 100), (22, 62)),
    ("yellow", (43, 64), (45, 100), (80, 100)),
    ("green", (75, 165), (30, 100), (25, 100)),
    ("blue", (190, 250), (35, 100), (30, 100)),
    ("purple", (262, 298), (30, 100), (25, 100)),
    ("pink", (305, 345), (25, 75), (80, 100)),
)
COLOURS = tuple(name for name, *_ in BOXES)
# Never offered beside each other: some call a camel orange, others brown.
NEAR = {
    "black": {"grey"},
    "grey": {"black", "white"},
    "white": {"grey"},
    "red": {"orange", "pink"},
    "orange": {"red", "brown", "yellow"},
    "brown": {"orange"},
    "yellow": {"orange"},
    "green": set(),
    "blue": {"purple"},
    "purple": {"blue", "pink"},
    "pink": {"red", "purple"},
}
MOST_OPTIONS = min(len(COLOURS) - len(near) for near in NEAR.values()) - 1  # one less: not white
WORDINGS = (
    "Which colour is the thing in the picture, mostly?",
    "What is the main colour of what is shown?",
    "Which colour does the pictured thing have for the most part?",
    "Of which colour do you see the most in what is pictured?",
    "How would you call the main colour here?",
)


class ColourTask(ReformulatedTask):
    """Which colour dominates the opaque pixels of an image.

    A pixel has a colour if its hue, saturation and value lie in that colour's box (``BOXES``). Images are asked
    about if one colour holds at least ``dominance`` of the opaque pixels; wrong options are drawn from the colours that
    are not ``NEAR`` it and hold at most ``trace`` of them. Images with transparent parts are put to models on white,
    so white is neither asked for nor offered there. Needs neither labels nor captions; images are decoded to find
    which can be asked about, until there are ``limit``.

    Args:
        source: Images.
        dominance: Least share of the colour asked for.
        trace: Greatest share of a colour that is offered as a wrong option.
        options: Colours to choose from.
        common: As for ``ReformulatedTask``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        source: RecordSource,
        *,
        dominance: float = 0.6,
        trace: float = 0.05,
        options: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(source, default_wordings=WORDINGS, formulation="SingleChoice", **common)
        self.dominance = dominance
        self.trace = trace
        self.options = check_options(options)
        if not 0.5 < dominance <= 1 or not 0 <= trace <= 0.5:
            raise ValueError(f"dominance is {dominance} and trace {trace}; allowed: above 0.5 up to 1, and 0 to 0.5")
        if options > MOST_OPTIONS:
            raise ValueError(
                f"options is {options}; allowed: 2 to {MOST_OPTIONS}, to leave out colours near each other"
            )

    def _usable(self, position: int) -> bool:
        right, wrong = self._sorted_out(self.source[position].needed_image)
        return right is not None and len(wrong) >= self.options - 1

    def _make(self, position: int, record: Record, rng: np.random.Generator) -> Sample:
        right, wrong = self._sorted_out(record.needed_image)
        assert right is not None  # it was usable
        drawn = [wrong[place] for place in rng.permutation(len(wrong))[: self.options - 1]]
        options, answer = arranged(right, drawn, rng=rng)
        return Sample(record.id, self._questions(), (record.needed_image,), options, answer)

    def _sorted_out(self, image: Image.Image) -> tuple[str | None, list[str]]:
        """The colour that dominates, if one does, and those that may be offered beside it."""
        shares = colour_shares(image)
        if image.has_transparency_data:
            del shares["white"]
        right = max(shares, key=lambda name: shares[name])
        wrong = [name for name, share in shares.items() if share <= self.trace and name not in {right, *NEAR[right]}]
        return (right if shares[right] >= self.dominance else None), wrong


def colour_shares(image: Image.Image) -> dict[str, float]:
    """Share of the opaque pixels (alpha of a half and more) that each colour holds; the rest has no name.

    Raises:
        CorruptRecord: The image has more than 8 bits a channel.
    """
    flat = flatten_image(image, channels=3, background=BACKGROUND)
    hsv_HW3 = np.asarray(flat.convert("HSV"), dtype=np.float32) * (360 / 256, 100 / 255, 100 / 255)
    opaque_HW = np.full(hsv_HW3.shape[:2], True)
    if image.has_transparency_data:
        opaque_HW = np.asarray(image.convert("RGBA").getchannel("A")) >= 128
    hue_N, saturation_N, value_N = hsv_HW3[opaque_HW].T
    total = max(1, len(hue_N))
    shares = {}
    for name, (first, last), saturations, values in BOXES:
        inside_N = (hue_N - first) % 360 <= last - first
        inside_N &= (saturations[0] <= saturation_N) & (saturation_N <= saturations[1])
        inside_N &= (values[0] <= value_N) & (value_N <= values[1])
        shares[name] = float(inside_N.sum() / total)
    return shares
