"""pyiqa's TOPIQ with random weights, where pyiqa is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file


def save_topiq(file: Path) -> Path:
    """Its weights, by pyiqa's names."""
    from pyiqa import create_metric

    torch.manual_seed(0)
    network = create_metric("topiq_nr", device="cpu", pretrained=False, backbone_pretrain=False).net
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
    return file
