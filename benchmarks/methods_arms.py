"""Arms of the methods study: which methods, at which share of the image tokens.

The share is that of all image tokens in all layers, so that methods that drop before the decoder, at a layer or step by
step have equally much to compute. Where the papers' own layers leave no room for a quarter, layers come earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blocks import (
    CompositeAttention,
    DivPrune,
    FastV,
    Feather,
    FitPrune,
    GemFilter,
    ImageGuidance,
    PyramidDrop,
    RandomTokens,
    RelevantImage,
    SparseVLM,
    TemperatureScale,
    TextRouter,
    UniformTokens,
    VisionAwareHeads,
    VisualAttentionRedistribution,
    VisualExit,
)
from blocks.tokens import Edit

SHARES = (0.25, 0.5, 0.75)
DEPTH, SIDE = 30, 16  # layers; rows and columns of image tokens
TEXT = 45  # tokens of a prompt that are none of an image
PLAIN, RANDOM = "plain", "RandomTokens"
STEPS = (2, 10, 20)  # layers where PyramidDrop drops
STRIDE = 3  # of Feather's grid


@dataclass(frozen=True)
class Arm:
    """What is tried.

    Args:
        name: Of its methods.
        share: Of image tokens in all layers, if any are dropped.
        make: Makes the methods of what was calibrated.
    """

    name: str
    share: float | None
    make: Callable[[Mapping[str, Any]], list[Edit]]

    @property
    def key(self) -> str:
        """Of its rows."""
        return self.name if self.share is None else f"{self.name} {self.share:.0%}"


def solved(kept: Callable[[float], float], share: float) -> float:
    """The number from 0 to 1 at which a rising ``kept`` is a share, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) < share else (low, middle)
    return high


def fast_v(share: float) -> Edit:
    """Two layers read everything, the rest what is left."""
    return FastV(layer=2, ratio=(share * DEPTH - 2) / (DEPTH - 2))


def pyramid(share: float) -> Edit:
    """Three drops by one ratio."""
    one, two, three = STEPS

    def kept(ratio: float) -> float:
        return (one + (two - one) * ratio + (three - two) * ratio**2 + (DEPTH - three) * ratio**3) / DEPTH

    return PyramidDrop(layers=STEPS, ratio=solved(kept, share))


def sparse(share: float) -> Edit:
    """The paper's layers and shares of 32, brought to 30 and stretched together."""
    layers, paper = (2, 5, 14), (0.52, 0.35, 0.19)
    spans = [end - begin for begin, end in zip(layers, (*layers[1:], DEPTH), strict=True)]

    def keep(part: float) -> list[float]:
        return [min(1.0, 6 * part * each) for each in paper]

    def kept(part: float) -> float:
        return (layers[0] + sum(span * each for span, each in zip(spans, keep(part), strict=True))) / DEPTH

    return SparseVLM(layers=layers, keep=keep(solved(kept, share)))


def feather(share: float) -> Edit:
    """Two drops by one ratio, the first beside a grid."""
    layers, grid = (2, 10), (-(-SIDE // STRIDE)) ** 2 / SIDE**2

    def kept(ratio: float) -> float:
        first = ratio + (1 - ratio) * grid
        return (layers[0] + (layers[1] - layers[0]) * first + (DEPTH - layers[1]) * first * ratio) / DEPTH

    ratio = solved(kept, share)
    return Feather(layers=layers, ratios=(ratio, ratio), stride=STRIDE)


def computed(share: float) -> float:
    """Share of the decoder's computation that a share of image tokens is, nearly."""
    return (share * SIDE**2 + TEXT) / (SIDE**2 + TEXT)


DROPPING: dict[str, Callable[[float, Mapping[str, Any]], Edit]] = {
    RANDOM: lambda share, found: RandomTokens(share),
    "UniformTokens": lambda share, found: UniformTokens(share),
    "DivPrune": lambda share, found: DivPrune(share),
    "TextRouter": lambda share, found: TextRouter(share),
    "GemFilter": lambda share, found: GemFilter(layer=12, ratio=share),
    "FastV": lambda share, found: fast_v(share),
    "PyramidDrop": lambda share, found: pyramid(share),
    "SparseVLM": lambda share, found: sparse(share),
    "Feather": lambda share, found: feather(share),
    "FitPrune": lambda share, found: FitPrune(found[f"FitPrune {share:.0%}"]),
    "VisualExit": lambda share, found: VisualExit(layer=round(share * DEPTH)),
}
EDITS: dict[str, Callable[[Mapping[str, Any]], Edit]] = {
    "VAR": lambda found: VisualAttentionRedistribution(channels=found["sinks"]),
    "TemperatureScale": lambda found: TemperatureScale(tau=0.8),
    "EE-MLLM-F": lambda found: CompositeAttention(),
    "VisionAwareHeads": lambda found: VisionAwareHeads(),
    "ImageGuidance": lambda found: ImageGuidance(),
    "AGLA": lambda found: RelevantImage(),
}
COMPOSED = (("DivPrune", "VAR"), ("FastV", "TemperatureScale"), ("Feather", "ImageGuidance"))  # at half the tokens


def arms() -> list[Arm]:
    """All, the untouched model first and what says most before what says less."""
    found = [Arm(PLAIN, None, lambda _: [])]
    found += [_dropping(name, share) for share in SHARES for name in DROPPING]
    found[1 + len(DROPPING) : 1 + len(DROPPING)] = [*map(_edit, EDITS), *(_composed(*names) for names in COMPOSED)]
    return found


def _dropping(name: str, share: float) -> Arm:
    return Arm(name, share, lambda found: [DROPPING[name](share, found)])


def _edit(name: str) -> Arm:
    return Arm(name, None, lambda found: [EDITS[name](found)])


def _composed(reducer: str, edit: str) -> Arm:
    return Arm(f"{reducer} + {edit}", 0.5, lambda found: [DROPPING[reducer](0.5, found), EDITS[edit](found)])
