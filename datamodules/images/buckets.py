"""Aspect buckets: images grouped by their proportions, so that none is cropped much and every batch has one size.

SDXL was trained this way (Podell et al., arXiv 2307.01952, section 2.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from huggingface_hub.utils import WeakFileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.sources.records import CorruptRecord, RecordSource
from sparsight.common.disk.files import write_whole
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel


@dataclass(frozen=True)
class AspectBuckets:
    """Image sizes of about the same area, and which image goes to which.

    Args:
        cell: Pixels of which heights and widths are multiples: 64 for Stable Diffusion's U-Nets, 8 times the patch
            size for transformers behind a VAE.
        max_ratio: Longest side over shortest side of the most extreme sizes.
        cache_dir: Folder where the sizes of a source's images are kept once they are read.

    Raises:
        ValueError: An option is out of range.
    """

    cell: int = 64
    max_ratio: float = 2.0
    cache_dir: str = "runs/image_sizes"

    def __post_init__(self) -> None:
        if self.cell < 1 or not 1 <= self.max_ratio < math.inf:
            raise ValueError(f"buckets: cell is {self.cell}, max_ratio {self.max_ratio}; allowed: both 1 or more")

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """All sizes (height, width) whose area is at most, and as near as can be, that of ``height`` x ``width``.

        Raises:
            ValueError: That size itself is not made of cells.
        """
        if height % self.cell or width % self.cell:
            raise ValueError(f"image_size {(height, width)} must be multiples of buckets.cell={self.cell}")
        area = height * width
        tallest: dict[int, int] = {}  # by width, so that no size has room for a larger one
        for tall in range(self.cell, area // self.cell + 1, self.cell):
            wide = area // tall // self.cell * self.cell
            if wide:
                tallest[wide] = tall
        most = max(self.max_ratio, height / width, width / height)
        return sorted((h, w) for w, h in tallest.items() if max(h / w, w / h) <= most)

    def check_fits(self, model: DiffusionModel) -> None:
        """See that a denoiser can work at all sizes.

        Raises:
            ValueError: It wants squares, or sizes of larger cells.
        """
        if family_of(model.denoiser).square_only:
            raise ValueError(
                "aspect buckets need a denoiser of any size, diffusers' DiT is for squares: remove buckets"
            )
        patch = family_of(model.denoiser).coarsest(model.denoiser)
        if self.cell % (patch * model.pixels_per_cell):
            raise ValueError(
                f"buckets.cell is {self.cell}; allowed for this denoiser: multiples of {patch * model.pixels_per_cell}"
            )

    def assign(self, measured_N2: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
        """Number of the size whose proportions are nearest, for images of (height, width), int64 (N,)."""
        wanted_N = np.log(np.maximum(measured_N2[:, 0], 1)) - np.log(np.maximum(measured_N2[:, 1], 1))
        offered_S = np.array([math.log(height / width) for height, width in sizes])
        return np.abs(wanted_N[:, None] - offered_S).argmin(1)

    def measure(self, source: RecordSource) -> np.ndarray:
        """Height and width of every image of an opened source, int32 (N, 2); zero where it cannot be read.

        They are read once and kept; processes that start together wait for the first one.
        """
        path = Path(self.cache_dir) / f"{source.fingerprint()[:16]}.npy"
        known = _load(path, len(source))
        if known is not None:
            return known
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_suffix(".lock")):
            known = _load(path, len(source))  # another process may have read them while this one waited
            if known is not None:
                return known
            rank_zero_info(f"reading the sizes of {len(source)} images into {path}")
            measured_N2 = np.array([_size(source, index) for index in range(len(source))], dtype=np.int32)
            write_whole(path, lambda part: np.save(part, measured_N2))
        return measured_N2


@runtime_checkable
class Diffusing(Protocol):
    """A module that trains a diffusion model."""

    diffusion: DiffusionModel


def trained_model(trainer: Any) -> DiffusionModel | None:
    """The diffusion model that a trainer is about to train, if it is one."""
    module = None if trainer is None else trainer.lightning_module
    return module.diffusion if isinstance(module, Diffusing) else None


def _size(source: RecordSource, index: int) -> tuple[int, int]:
    try:
        return source.size(index)
    except CorruptRecord:  # found again, counted and reported when it is needed
        return (0, 0)


def _load(path: Path, count: int) -> np.ndarray | None:
    try:
        sizes = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return sizes if sizes.shape == (count, 2) else None
