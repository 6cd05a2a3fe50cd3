"""LPIPS between student and teacher, with backbone weights from a local file."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from sparsight.common.disk.weights import load_weights
from sparsight.evaluation.images.mean import SampleMean
from sparsight.evaluation.images.samples import Samples


class TeacherLPIPS(SampleMean):
    """Learned perceptual distance (Zhang et al., arXiv 1801.03924) of the student's images to the teacher's, mean.

    torchmetrics' network and linear layers. torchmetrics downloads the backbone without asking; here its file is given.
    Images are not resized, and need about 32 pixels a side or more.

    Args:
        weights: torchvision's ImageNet weights of the backbone, e.g. ``alexnet-owt-7be5be79.pth`` or
            ``vgg16-397923af.pth`` from download.pytorch.org/models.
        network: Backbone; papers report ``alex`` unless they say otherwise.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds another network.

    Examples:
        >>> pairs = Samples(drawn, torch.arange(len(drawn)), teacher_images=drawn)
        >>> TeacherLPIPS(alexnet).of([pairs])  # alexnet: a file
        {'fidelity_lpips_alex': 0.0}
    """

    needs_teacher = True
    higher_is_better = False

    def __init__(self, weights: str, network: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        super().__init__()
        backbone = load_weights(weights)
        with torch.random.fork_rng(devices=[]):
            self.lpips = _LPIPS(net=network, pnet_rand=True)  # linear layers from the package, backbone to be loaded
        # slices keep torchvision's layer numbers: slice2.3.weight is features.3.weight
        names = {name: "features." + name.split(".", 1)[1] for name in self.lpips.net.state_dict()}
        missing = set(names.values()) - backbone.keys()
        if missing:
            raise ValueError(f"{weights} is not torchvision's {network}: it has no {min(missing)}")
        self.lpips.net.load_state_dict({name: backbone[there] for name, there in names.items()})
        self.lpips.requires_grad_(False).eval()
        self.network = network

    @property
    def protocol(self) -> str:
        """The backbone."""
        return f"LPIPS ({self.network}) to the teacher's images from the same noise and conditions"

    def update(self, samples: Samples) -> None:
        """Add samples beside the teacher's.

        Raises:
            ValueError: The teacher's images are not there.
        """
        images, teacher = (
            (pixels.float() / 127.5 - 1).expand(-1, 3, -1, -1) for pixels in (samples.pixels, samples.teacher_pixels)
        )
        with torch.autocast(images.device.type, enabled=False):
            self.add(self.lpips(images, teacher).flatten(), samples.index)

    def compute(self) -> dict[str, Tensor]:
        """``fidelity_lpips_<backbone>``, 0 for equal images."""
        return {f"fidelity_lpips_{self.network}": self.mean()}
