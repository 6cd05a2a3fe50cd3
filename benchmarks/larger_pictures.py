"""What mixers get wrong before any training, on pictures of other sizes than the teacher was made for.

    python -m benchmarks.larger_pictures --arms focal_halo_4 focal_tile_16 neighborhood_9

Relative L2 error of the shipped Fashion-MNIST teacher's prediction, all six sites replaced, on noised test images that
are brought to each size; mean over four noise levels. Mixers of queries, keys and values alone say something here:
others start from samples. Needs the idx files (Debian: apt-get install dataset-fashion-mnist).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fashion_mnist import fashion_mnist
from benchmarks.study_arms import ARMS, factory_of, plain_of
from sparsight.common.tables import format_table
from sparsight.diffusion.model.diffusion_model import DiffusionModel, predict
from sparsight.diffusion.surgery.replace import replace, restore, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.testing import relative_l2

TEACHER = "fashion_mnist_dit"
LEVELS = (50, 300, 600, 900)  # of 1 000
DEFAULT = ("focal_halo_4", "focal_tile_16", "tiles", "neighborhood_9", "windows_grid", "pooled", "no_mixing")


def predictions(model: DiffusionModel, images: Tensor, noise: Tensor, labels: Tensor) -> list[Tensor]:
    """What the denoiser says of noised images in [-1, 1], at every level."""
    size = (images.shape[-2], images.shape[-1])
    condition = model.condition({"label": labels}, size)
    found = []
    for level in LEVELS:
        timestep = torch.full((len(images),), level)
        noised = model.process.add_noise(images, noise, timestep)
        found.append(predict(model.denoiser, noised, timestep, condition))
    return found


@torch.no_grad()
def errors(arms: Sequence[str], sizes: Sequence[int], data: Path, *, count: int) -> dict[str, dict[int, float]]:
    """Error of each arm at every size."""
    model = DiffusionModel.from_pretrained(TEACHER)
    model.denoiser.eval()
    pictures, labels = (part[:count] for part in fashion_mnist(data, train=False))
    found: dict[str, dict[int, float]] = {arm: {} for arm in arms}
    for size in sizes:
        images = F.interpolate(pictures, (size, size), mode="bilinear", align_corners=False) * 2 - 1
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        wanted = predictions(model, images, noise, labels)
        for arm in arms:
            torch.manual_seed(0)
            shells = replace(model.denoiser, factory_of(plain_of(ARMS[arm])))
            for shell in shells.values():
                shell.handed_over = True
            set_mode(shells.values(), Mode.STUDENT)
            given = predictions(model, images, noise, labels)
            found[arm][size] = sum(map(relative_l2, given, wanted)) / len(LEVELS)
            restore(model.denoiser)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT))
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 48, 64], help="sides in pixels; a token has 2")
    parser.add_argument("--count", type=int, default=8, help="test images")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="idx files")
    arguments = parser.parse_args()
    found = errors(arguments.arms, arguments.sizes, arguments.data, count=arguments.count)
    rows = [
        {"arm": arm} | {f"{size} pixels": f"{error:.3f}" for size, error in of.items()} for arm, of in found.items()
    ]
    print(format_table(rows))


if __name__ == "__main__":
    main()
