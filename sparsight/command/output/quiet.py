"""Messages of other libraries that say nothing to our users, kept off the screen."""

from __future__ import annotations

import logging
import sys
import warnings

HARMLESS_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training.*",  # the frozen teacher is meant to be
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6.6 with torch 2.15
    r".*was deprecated in v4\.49\.0.*",  # Lightning 2.6.6 with jsonargparse 4.53
    r".*parameter was deprecated in v4.*",
    r".*is_gradient_checkpointing.* is deprecated.*",  # transformers 5.23, of what peft asks a model
    r".*is not supported by the model summary.*",
    r".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",  # as is meant
    r".*will save all extracted features in buffer.*",
)
TOLD_OF_EVERY_LOADER = r"This DataLoader will create .* worker processes"  # once is enough
OF_VERBS_THAT_SAVE_NOTHING = (r"The dirpath has changed from .*",)  # of the checkpoints that a run before them wrote
ADVERTISEMENTS = ("For seamless cloud",)
CUT_SHORT = "The following part of your input was truncated"  # by diffusers, of every caption that is too long
KEPT_NOTHING = "should be kept in float32: []"  # by diffusers, of every cast of a model that keeps nothing so
FURTHER = "Further captions that are too long are cut in the same way, and not shown"


def quieten(*, trains: bool = True) -> None:
    """Filter what is harmless; everything else still shows.

    Args:
        trains: Whether checkpoints are written.
    """
    for message in (*HARMLESS_WARNINGS, *(() if trains else OF_VERBS_THAT_SAVE_NOTHING)):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("once", message=TOLD_OF_EVERY_LOADER)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    quieten_diffusers()


def quieten_diffusers() -> None:
    """Filter what it says, if it is loaded: a command that does without it is not to wait for it."""
    loaded = sys.modules.get("diffusers.utils.logging")
    if loaded is None:
        return
    loaded.get_logger()  # makes its handlers
    for handler in logging.getLogger("diffusers").handlers:
        if not any(isinstance(each, FirstCut) for each in handler.filters):
            handler.addFilter(FirstCut())
            handler.addFilter(_keeps_something)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in ADVERTISEMENTS)


def _keeps_something(record: logging.LogRecord) -> bool:
    return KEPT_NOTHING not in record.getMessage()


class FirstCut(logging.Filter):
    """Shows the first caption that was cut, and says that there may be more."""

    shown = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a message."""
        text = record.getMessage()
        if not text.startswith(CUT_SHORT):
            return True
        if self.shown:
            return False
        self.shown = True
        record.msg, record.args = f"{text}. {FURTHER}", ()
        return True
