"""Whether images are of the size and the channels that the trained model takes, seen before its first batch."""

from __future__ import annotations

from datamodules.images.image_dataset import ImageTransform
from sparsight.common.errors import require
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel


def check_size(transform: ImageTransform, model: DiffusionModel) -> None:
    """See that a model can work on images as they are made.

    A denoiser cuts off what does not fill its last patch, and a VAE what does not fill its last cell, without a word.

    Raises:
        ValueError: It takes other channels, larger cells, or squares alone; the message names the option.
    """
    part = "denoiser" if model.vae is None else "VAE"
    channels = model.sample_shape()[0] if model.vae is None else model.vae.config.in_channels
    require(
        transform.channels == channels, "transform.channels", transform.channels, f"{channels}, as the model's {part}"
    )
    size = (transform.height, transform.width)
    cell = family_of(model.denoiser).patch(model.denoiser)[-1] * model.pixels_per_cell  # U-Nets take any size
    fits = not (transform.height % cell or transform.width % cell)
    require(fits, "image_size", size, f"multiples of {cell}, the pixels of a patch of the model")
    square = not family_of(model.denoiser).square_only or transform.height == transform.width
    require(square, "image_size", size, "a single number, as this model (DiT) takes squares alone")
