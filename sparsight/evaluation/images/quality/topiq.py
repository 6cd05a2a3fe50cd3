"""TOPIQ: perceived quality of an image by itself, by the package pyiqa."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from sparsight.common.disk.weights import find_weights, load_weights
from sparsight.evaluation.images.mean import SampleMean
from sparsight.evaluation.images.samples import Samples

_WEIGHTS = "chaofengc/IQA-PyTorch-Weights/{file}"
_FILES = {
    "koniq": ("topiq_nr", "cfanet_nr_koniq_res50-9a73138b.pth"),
    "flive": ("topiq_nr-flive", "cfanet_nr_flive_res50-ded1c74e.pth"),
    "spaq": ("topiq_nr-spaq", "cfanet_nr_spaq_res50-a7f799ac.pth"),
}


class TOPIQ(SampleMean):
    """Perceived quality without a reference (Chen et al., arXiv 2308.03060), about 0 to 1, larger is better; mean.

    The network is the package pyiqa's, which the extra ``topiq`` installs; its licence allows no commercial use.
    pyiqa unpickles weights without restriction: here they are read with ``weights_only`` and handed over. Images are
    seen at their own size, but for ``flive`` (384 px).

    Args:
        trained_on: Opinions of which people: of KonIQ-10k, unless told otherwise.
        weights: pyiqa's checkpoint: a local file, safetensors or torch, or one on the hub as ``owner/name/file``;
            pyiqa's own on the hub if not given.

    Raises:
        ImportError: pyiqa is not installed.
        FileNotFoundError: There is no such file.
        ValueError: The file holds another network.

    Examples:
        >>> [*TOPIQ(weights=topiq).of(in_batches(drawn))]  # topiq: a file
        ['topiq_koniq']
    """

    higher_is_better = True

    def __init__(self, trained_on: Literal["koniq", "flive", "spaq"] = "koniq", weights: str | None = None) -> None:
        if trained_on not in _FILES:
            raise ValueError(f"trained_on is {trained_on!r}; allowed: {', '.join(_FILES)}")
        super().__init__()
        self.trained_on = trained_on
        metric, file = _FILES[trained_on]
        self.network = _network(metric, weights or _WEIGHTS.format(file=file))

    @property
    def protocol(self) -> str:
        """What it was trained on."""
        return f"TOPIQ without reference, trained on {self.trained_on}"

    @torch.no_grad()
    def update(self, samples: Samples) -> None:
        """Add samples.

        Raises:
            NonFiniteError: A score is not finite; the message gives the ids.
        """
        rgb_BCHW = samples.pixels.expand(-1, 3, -1, -1).float() / 255
        with torch.autocast(rgb_BCHW.device.type, enabled=False):
            self.add(self.network(rgb_BCHW).flatten(), samples.index)

    def compute(self) -> dict[str, Tensor]:
        """``topiq_<trained on>``."""
        return {f"topiq_{self.trained_on}": self.mean()}


def _network(metric: str, source: str) -> torch.nn.Module:
    try:
        from pyiqa import create_metric
    except ImportError as error:
        raise ImportError(
            f"TOPIQ needs the package pyiqa, which cannot be imported ({error}): pip install 'sparsight[topiq]'; its "
            "licence allows no commercial use"
        ) from error
    weights: dict[str, Any] = load_weights(find_weights(source))
    with torch.random.fork_rng(devices=[]):
        network = create_metric(metric, device="cpu", pretrained=False, backbone_pretrain=False).net
    state = {name.removeprefix("module."): value for name, value in weights.get("params", weights).items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{source} holds another network than {metric}: {error}") from error
    return network.requires_grad_(False).eval()
