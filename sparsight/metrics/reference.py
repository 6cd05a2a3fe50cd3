"""Statistics of reference images on disk: safetensors, with what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparsight.analysis.tables import write_whole
from sparsight.distill.sample_cache import differences
from sparsight.hyperparameters import ConfigurationError


@dataclass(frozen=True)
class Reference:
    """Where the statistics of reference images are kept.

    Args:
        file: A safetensors file. If it is not there, it is made from the reference images of the first evaluation.
        dataset: Name of the images, e.g. ``coco2014-val``; a file of another name is refused.
        count: Number of images that the file must hold; any if not given.
    """

    file: str
    dataset: str
    count: int | None = None

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


def save_reference(reference: Reference, statistics: Mapping[str, Tensor], made_from: Mapping[str, str]) -> None:
    """Write statistics with the data set's name and what else they were made from."""
    content = save(
        {name: tensor.cpu().contiguous() for name, tensor in statistics.items()}, metadata=_told(reference, made_from)
    )
    write_whole(Path(reference.file), lambda part: part.write_bytes(content))


def load_reference(reference: Reference, made_from: Mapping[str, str]) -> tuple[dict[str, Tensor], str]:
    """Read statistics that were made from the same.

    Args:
        reference: File, data set and number of images.
        made_from: What the statistics must have been made from, by name.

    Returns:
        The statistics, and the size of the images.

    Raises:
        ValueError: The file is none of ours, or was made from other images or features; both values are named.
    """
    try:
        with safe_open(reference.file, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            statistics = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except SafetensorError as error:
        raise ValueError(f"{reference.file} is no safetensors file: {error}") from error
    wanted = _told(reference, made_from)
    if {name: metadata.get(name) for name in wanted} != wanted:
        raise ValueError(
            f"{reference.file} holds statistics of other images or features:\n"
            f"{differences({name: metadata.get(name) for name in wanted}, wanted)}\n"
            "Delete it to have it made anew, or give another file"
        )
    reference.check_count(statistics)
    return statistics, metadata["size"]


def _told(reference: Reference, made_from: Mapping[str, str]) -> dict[str, str]:
    return {"format": "sparsight reference 1", "dataset": reference.dataset, **made_from}
