"""How much of the data may be unusable, or unknown to the model, before a run fails."""

from __future__ import annotations

from dataclasses import dataclass

from sparsight.common.errors import require


@dataclass(frozen=True, kw_only=True)
class AllowedSamples:
    """How many samples of an evaluation's task may be unusable: they are left out, and each is named.

    Args:
        corrupt_share: Share of them, 0 to 1; above it the run fails.

    Raises:
        ValueError: The share is out of range.
    """

    corrupt_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        require(0.0 <= self.corrupt_share <= 1.0, "corrupt_share", self.corrupt_share, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class AllowedRecords(AllowedSamples):
    """How much of the data may be unusable.

    Args:
        corrupt_share: Share of a split's records, 0 to 1, that may be unusable; above it the run fails.
        unused_share: Share of a source's files, 0 to 1, that may be no part of any record; above it the run fails.

    Raises:
        ValueError: A share is out of range.
    """

    corrupt_share: float = 0.01
    unused_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        super().__post_init__()
        require(0.0 <= self.unused_share <= 1.0, "unused_share", self.unused_share, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class AllowedImages(AllowedRecords):
    """How much of the images may be unusable, and which classes they may have.

    Args:
        corrupt_share: Share of a split's records, 0 to 1, that may be unusable; above it the run fails.
        unused_share: Share of a source's files, 0 to 1, that may be no part of any record; above it the run fails.
        other_classes: Allow classes that the trained model knows by other names, or not at all.

    Raises:
        ValueError: A share is out of range.
    """

    other_classes: bool = False
