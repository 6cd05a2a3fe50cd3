"""Letting the mixer of a site start from the teacher that it replaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from blocks.base import AttentionWeights, SiteSamples
from sparsight.common.training.sharding import fill, is_sharded, own_class, whole
from sparsight.diffusion.surgery.replace import attention_weights
from sparsight.diffusion.surgery.shell import Shell


def start_from_teacher(shell: Shell, samples: Sequence[SiteSamples]) -> None:
    """Call the mixer's ``init_from_teacher``; one that is split over processes is started as a whole, then split."""
    weights = attention_weights(shell.attention)
    mixer = shell.mixer
    if not is_sharded(mixer):
        mixer.init_from_teacher(weights, samples)
        return
    weights = AttentionWeights(
        query=whole(weights.query),
        key=whole(weights.key),
        value=whole(weights.value),
        out=whole(weights.out),
        query_bias=None if weights.query_bias is None else whole(weights.query_bias),
        key_bias=None if weights.key_bias is None else whole(weights.key_bias),
        value_bias=None if weights.value_bias is None else whole(weights.value_bias),
        out_bias=None if weights.out_bias is None else whole(weights.out_bias),
        scale=weights.scale,
    )
    twin = own_class(mixer)(mixer.site, **mixer.options).to(weights.query.device)
    for name, parameter in twin.state_dict().items():
        parameter.copy_(whole(mixer.state_dict()[name]))
    twin.init_from_teacher(weights, samples)
    own = mixer.state_dict()
    for name, started in twin.state_dict().items():
        fill(own[name], started)


def start_alike(shells: Iterable[Shell]) -> None:
    """Let mixers, which are equal up to rounding on all processes, be equal to the bit."""
    for shell in shells:
        for tensor in shell.mixer.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
