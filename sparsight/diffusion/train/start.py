"""Letting the mixer of a site start from the teacher that it replaces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from blocks.base import SiteSamples
from sparsight.common.training.processes import alike
from sparsight.common.training.sharding import fill, is_sharded, own_class, whole
from sparsight.diffusion.surgery.joint import MASS, JointMass
from sparsight.diffusion.surgery.replace import attention_weights
from sparsight.diffusion.surgery.shell import Shell


def start_from_teacher(mixer: Any, attention: Any, samples: Sequence[SiteSamples]) -> None:
    """Call the mixer's ``init_from_teacher``; one that is split over processes is started as a whole, then split.

    At a joint site the mixer stands in front of the last projection, and its mass starts as the teacher's.

    Args:
        mixer: Of a site; changed in place.
        attention: The teacher there.
        samples: What the teacher saw and returned.
    """
    weights = attention_weights(attention)
    split = {name: tensor for name, tensor in vars(weights).items() if isinstance(tensor, Tensor)}
    gathered: dict[str, Any] = {name: whole(tensor) for name, tensor in split.items()}
    weights = dataclasses.replace(weights, **gathered)
    if mixer.site.text is not None:
        inner = weights.out.shape[1]
        weights = dataclasses.replace(weights, out=torch.eye(inner).to(weights.query), out_bias=None)
        _start_mass(mixer._modules.get(MASS), samples)
    if not is_sharded(mixer):
        mixer.init_from_teacher(weights, samples)
        return
    twin = own_class(mixer)(mixer.site, **mixer.options).to(weights.query.device)
    for name, parameter in twin.state_dict().items():
        parameter.copy_(whole(mixer.state_dict()[name]))
    twin.init_from_teacher(weights, samples)
    own = mixer.state_dict()
    for name, started in twin.state_dict().items():
        fill(own[name], started)


@torch.no_grad()
def _start_mass(mass: JointMass | None, samples: Sequence[SiteSamples]) -> None:
    """The mean, over samples and queries, of the teacher's log-sum-exp over the image, per token of it."""
    per_token = [
        sample.masses.flatten(0, 1).mean(0) - math.log(sample.grid.tokens)
        for sample in samples
        if sample.masses is not None
    ]
    if mass is not None and per_token:
        fill(mass.per_token, torch.stack(per_token).mean(0))


def start_alike(shells: Iterable[Shell], others: Iterable[Tensor] = ()) -> None:
    """Let mixers, which are equal up to rounding on all processes, be equal to the bit; and others that train."""
    of_mixers = (tensor for shell in shells for tensor in shell.mixer.state_dict().values())
    alike([*of_mixers, *others])
