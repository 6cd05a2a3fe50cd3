"""Statistics of reference images on disk: safetensors, with what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsight.common.disk.cache_settings import differences
from sparsight.common.disk.files import write_whole
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import check_finite
from sparsight.common.hashes import is_state, state_hash
from sparsight.common.plain import flatten

_HASH = "sha256"


@dataclass(frozen=True)
class Reference:
    """Where the statistics of reference images are kept.

    Args:
        file: A safetensors file. If it is not there, it is made from the reference images of the first evaluation.
        dataset: Name of the images, e.g. ``coco2014-val``; a file of another name is refused.
        count: Number of images that the file must hold; any if not given.
        transform: Options of the ``ImageTransform`` that the images must have gone through, e.g. ``{fit: crop, height:
            256, width: 256}``. If not given: that of the data, where it has images, and any where it has none.
    """

    file: str
    dataset: str
    count: int | None = None
    transform: dict[str, Any] | None = None

    @property
    def demanded(self) -> dict[str, str]:
        """``transform`` as the file tells it."""
        return as_told({"transform": self.transform}) if self.transform else {}

    @property
    def exists(self) -> bool:
        """Whether the file is there."""
        return Path(self.file).is_file()

    def check_count(self, statistics: Mapping[str, Tensor]) -> None:
        """Compare the number of images behind statistics.

        Raises:
            ConfigurationError: Another number is asked for.
        """
        found = int(statistics["count"])
        if self.count is not None and found != self.count:
            raise ConfigurationError(
                f"{self.file}: statistics of {found} images of {self.dataset}, but count={self.count} is asked for; do "
                "limits of data or batches leave images out?"
            )

    def check_told(self, told: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        """Compare what the file tells of its making with what is wanted.

        Raises:
            ConfigurationError: Something differs; both values are named.
        """
        found = {name: told.get(name) for name in wanted}
        if found != dict(wanted):
            raise ConfigurationError(
                f"{self.file} holds statistics of other images or features:\n{differences(found, wanted)}\n"
                "Delete it to have it made anew, give another file, or name the images' own transform in the reference"
            )

    def check_prepared(self, prepared: Mapping[str, str]) -> None:
        """Compare how images of the data are prepared with what ``transform`` demands.

        Raises:
            ConfigurationError: Something differs; both values are named.
        """
        found = {name: prepared.get(name) for name in self.demanded}
        if found != self.demanded:
            raise ConfigurationError(
                f"{self.file} is to hold statistics of images of another transform than those of the data:\n"
                f"{differences(found, self.demanded)}\nGive the data these options, or change the reference's transform"
            )


def as_told(facts: Mapping[str, Any]) -> dict[str, str]:
    """Nested facts as files tell them: text under dotted names."""
    return {name: str(value) for name, value in flatten(facts).items()}


def save_reference(reference: Reference, statistics: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
    """Write statistics with what they tell of their making."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in statistics.items()}
    content = save(tensors, metadata={**told, _HASH: state_hash(tensors)})
    write_whole(Path(reference.file), lambda part: part.write_bytes(content))


def load_reference(reference: Reference, wanted: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read statistics that were made from what is wanted.

    Args:
        reference: File, data set and number of images, and their transform if that is demanded.
        wanted: What the statistics must have been made from, by name.

    Returns:
        The statistics, and all that the file tells of their making.

    Raises:
        ValueError: The file is none of ours, or was made from other images or features; both values are named.
        NonFiniteError: A statistic is not finite.
    """
    try:
        with safe_open(reference.file, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except SafetensorError as error:
        raise ValueError(
            f"{reference.file} is damaged, or no safetensors file ({error}): delete it to have it made anew"
        ) from error
    recorded = metadata.pop(_HASH, None)
    if recorded is not None and not is_state(recorded, statistics):  # older files have none
        raise ValueError(f"{reference.file} is damaged: its checksum is wrong; delete it to have it made anew")
    check_finite(statistics, f"reference statistics in {reference.file}")
    reference.check_told(metadata, {**wanted, **reference.demanded})
    reference.check_count(statistics)
    return statistics, metadata
