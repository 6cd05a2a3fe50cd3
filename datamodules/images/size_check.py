"""Whether images are of the size and the channels that the trained model takes, seen before its first batch."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.images.image_dataset import ImageTransform
from sparsight.common.errors import require
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel

UNSCALED = (1.0,)


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


def check_scales(scales: Sequence[float], height: int, width: int, *, bucketed: bool) -> tuple[float, ...]:
    """The multiples of a size that training images come in, if they make whole pixels.

    Args:
        scales: The multiples.
        height: Of the size.
        width: Of the size.
        bucketed: Whether images are brought to sizes of one area, too.

    Raises:
        ConfigurationError: There are none, one is no number above 0 or is named twice, it makes no whole pixels, or
            images are bucketed besides.
    """
    require(len(scales) == len(set(scales)) > 0, "scales", scales, "one or more numbers, each of them once")
    for scale in scales:
        whole = scale > 0 and float(scale * height).is_integer() and float(scale * width).is_integer()
        require(whole, "scales", scale, f"what makes whole pixels of image_size {(height, width)}")
    require(
        tuple(scales) == UNSCALED or not bucketed,
        "scales",
        scales,
        "[1] beside buckets, which choose sizes by themselves",
    )
    return tuple(scales)
