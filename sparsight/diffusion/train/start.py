"""Letting the mixer of a site start from the teacher that it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from blocks.base import AttentionWeights, SiteSamples
from sparsight.common.training.sharding import fill, is_sharded, whole
from sparsight.diffusion.surgery.replace import attention_weights
from sparsight.diffusion.surgery.shell import AttentionShell


def start_from_teacher(shell: AttentionShell, samples: Sequence[SiteSamples]) -> None:
    """Call the mixer's ``init_from_teacher``; one that is split over processes is started as a whole, then split."""
    weights = attention_weights(shell.teacher)
    mixer = shell.student.mixer
    if not is_sharded(mixer):
        mixer.init_from_teacher(weights, samples)
        return
    values = {field.name: getattr(weights, field.name) for field in fields(weights)}
    values = {name: whole(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    twin = type(mixer)(mixer.site, **mixer.options).to(values["query"].device)
    for name, parameter in twin.state_dict().items():
        parameter.copy_(whole(mixer.state_dict()[name]))
    twin.init_from_teacher(AttentionWeights(**values), samples)
    started = twin.state_dict()
    for name, parameter in mixer.state_dict().items():
        fill(parameter, started[name])
