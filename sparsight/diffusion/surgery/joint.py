"""The core of a joint site, where text and image attend to each other in one sequence: a mixer for the image alone.

Queries of the text see all keys, as they did. Queries of the image see the image through the mixer and the text
exactly, under one softmax: the parts are weighted by their masses, of which a log-sum-exp tells the logarithm. Exported
models carry this file's text as it is.

Shape legend: B batch, h heads, N tokens of the image, d channels of a head, C channels (h * d).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import CoreMixer, FeatureMixer, Layout, TokenMixer
from blocks.ops.partial import Partial, attend, merge
from sparsight.diffusion.surgery.student import entered, entering

MASS = "joint_mass"
"""Child of a mixer that cannot tell its mass; no mixer may have one of that name itself."""


class JointMass(nn.Module):
    """A learned mass for each head, of a mixer that cannot tell how much of a softmax it stands for.

    Its logarithm is a learned number plus that of the number of image tokens, for every query alike. The number is 0 to
    begin with, as for logits of zero; from samples of the teacher it starts as the mean over their queries.
    """

    def __init__(self, heads: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.per_token = nn.Parameter(torch.zeros(heads, device=device))

    def forward(self, output_BhNd: Tensor) -> Tensor:
        """Logarithm of the mass behind a mixer's output: (B, h, N, 1) in fp32."""
        count = output_BhNd.new_full((), output_BhNd.shape[2], dtype=torch.float32)
        mass_h11 = (self.per_token.float() + count.log())[:, None, None]
        return mass_h11.expand(*output_BhNd.shape[:-1], 1).clone()  # what shards modules wants no views of them


def is_core(mixer: TokenMixer) -> bool:
    """Whether an attention's own layers stay around a mixer: one of its core, or any at a joint site."""
    return isinstance(mixer, CoreMixer) or mixer.site.text is not None


def give_mass(mixer: Any, device: torch.device | None) -> None:
    """Add a learned mass to a mixer that needs one and has none; changed in place.

    Raises:
        ValueError: It has something else of that name.
    """
    if mixer.site.text is None or mixer.is_softmax or isinstance(mixer._modules.get(MASS), JointMass):
        return
    if MASS in dir(mixer):
        raise ValueError(f"{type(mixer).__name__} has a {MASS} of its own: rename it for sites with text")
    mixer.add_module(MASS, JointMass(mixer.site.heads, device))


def joint_core(mixer: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, hidden_BNC: Tensor) -> Tensor:
    """What a joint attention makes of queries, keys and values (B, h, tokens, d) with a mixer for its image.

    Args:
        mixer: Of the site.
        q: Queries of image and text.
        k: Keys.
        v: Values.
        layout: Where the image stands among them.
        scale: Factor of the logits.
        hidden_BNC: What entered the attention of the image, for feature mixers.
    """
    (q_before, q_image, q_after), k_parts, v_parts = layout.split(q), layout.split(k), layout.split(v)
    output, mass = _of_image(mixer, q_image, k_parts[1], v_parts[1], layout, scale, hidden_BNC)
    if layout.others == 0:
        return output
    k_text, v_text = _joined(k_parts[0], k_parts[2]), _joined(v_parts[0], v_parts[2])
    from_text, mass_of_text = attend(q_image, k_text, v_text, scale)
    image, _ = merge([(output, mass), (from_text.to(output.dtype), mass_of_text)])
    text = F.scaled_dot_product_attention(_joined(q_before, q_after), k, v, scale=scale)
    before, after = text.split([layout.before, layout.after], 2)
    return torch.cat([before, image.to(text.dtype), after], 2)


def _of_image(mixer: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, hidden_BNC: Tensor) -> Partial:
    """What image tokens take from each other, and the logarithm of its mass."""
    if isinstance(mixer, FeatureMixer):
        output = mixer(entered(hidden_BNC, mixer), layout.grid)
        output = output.unflatten(-1, (mixer.site.heads, -1)).transpose(1, 2)
    else:
        q = entering(q, mixer)
        k, v = k.to(q.dtype), v.to(q.dtype)
        if mixer.is_softmax:
            told: Partial = mixer(q, k, v, layout.grid, scale, mass=True)
            return told
        output = mixer(q, k, v, layout.grid, scale)
    return output, mixer.get_submodule(MASS)(output)


def _joined(before: Tensor, after: Tensor) -> Tensor:
    """Both, one after the other; the one that is not empty as it is."""
    if before.shape[2] == 0 or after.shape[2] == 0:
        return after if before.shape[2] == 0 else before
    return torch.cat([before, after], 2)
