"""Options of how conversations become rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from sparsight.common.errors import require


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How conversations are cut, chosen and put together for a batch.

    Args:
        max_length: Most tokens of a sample; longer ones lose the end of their text, never image tokens.
        length_grouping: Make batches of conversations of similar length, either all with or all without images; what
            does not fill a last batch of its kind is left out, another part in every epoch. No evaluation item is; the
            order of their batches is drawn with the seed, so that the first of them are a sample of all.
        packing: Put conversations of a batch together into rows of at most ``max_length`` tokens.

    Raises:
        ValueError: ``max_length`` is out of range, or packing has none.
    """

    max_length: int | None = None
    length_grouping: bool = False
    packing: bool = False

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        length = self.max_length
        require(length is None or length >= 1, "max_length", length, "1 or more, or null")
        if self.packing and length is None:
            raise ValueError("packing fills rows of max_length tokens; set max_length")
