"""Messages of other libraries that say nothing to our users, kept off the screen."""

from __future__ import annotations

import logging
import warnings

HARMLESS_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training.*",  # the frozen teacher is meant to be
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6.6 with torch 2.15
    r".*was deprecated in v4\.49\.0.*",  # Lightning 2.6.6 with jsonargparse 4.53
    r".*parameter was deprecated in v4.*",
    r".*is not supported by the model summary.*",
    r".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",  # as is meant
    r".*will save all extracted features in buffer.*",
)
ADVERTISEMENTS = ("For seamless cloud",)


def quieten() -> None:
    """Filter what is harmless; everything else still shows."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in ADVERTISEMENTS)
