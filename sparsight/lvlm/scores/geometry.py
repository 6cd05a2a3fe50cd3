"""Distances between the directions of vectors, exact for equal and for opposite ones.

1 - cos and arccos of a dot product lose all digits where vectors nearly agree, as those before and after a layer do:
in fp32 an untouched vector can seem 0.0003 rad away from itself. Differences of unit vectors do not (W. Kahan, "How
futile are mindless assessments of roundoff in floating-point computation", 2006, section 12).

Shape legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Directions:
    """Lengths of difference and sum of unit vectors, fp32.

    Args:
        apart_BT: |u - v|, 0 for equal directions and 2 for opposite ones.
        together_BT: |u + v|.
    """

    apart_BT: Tensor
    together_BT: Tensor

    @classmethod
    def between(cls, first_BTC: Tensor, second_BTC: Tensor) -> Directions:
        """Compare vectors token by token, in fp32."""
        u_BTC, v_BTC = F.normalize(first_BTC.float(), dim=-1), F.normalize(second_BTC.float(), dim=-1)
        return cls((u_BTC - v_BTC).norm(dim=-1), (u_BTC + v_BTC).norm(dim=-1))

    @cached_property
    def cosine_distance_BT(self) -> Tensor:
        """1 - cos: 0 for equal directions, 2 for opposite ones."""
        return (self.apart_BT.square() / 2).clamp(max=2)  # lengths of unit vectors are rounded

    @cached_property
    def angle_BT(self) -> Tensor:
        """Angle divided by pi: 0 for equal directions, 1 for opposite ones."""
        return (2 / math.pi * torch.atan2(self.apart_BT, self.together_BT)).clamp(max=1)
