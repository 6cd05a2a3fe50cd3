"""What a module or data were made with, as checkpoints keep it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FrameType

from lightning.pytorch.core.mixins import HyperparametersMixin

from sparsight.common.plain import is_plain, plain_groups


def keep_plain(
    thing: HyperparametersMixin, constructor: FrameType | None, *, ignore: Sequence[str] = (), logger: bool = True
) -> None:
    """Keep the arguments of constructors that are plain data, so that checkpoints load with ``weights_only``.

    Built by the command, every argument is plain; built in Python, callables and modules are left out, and groups of
    options are held as mappings.

    Args:
        thing: What is being made.
        constructor: Frame of the constructor that keeps them; those of derived classes count as well.
        ignore: Arguments that are not kept.
        logger: Whether loggers are told.
    """
    frames = [*_constructors(thing, constructor)]
    for frame in frames:
        thing.save_hyperparameters(ignore=list(ignore), frame=frame, logger=logger)
    groups = plain_groups(type(thing), thing.hparams)
    not_plain = [name for name, value in thing.hparams.items() if not is_plain(value)]
    for frame in frames:
        thing.save_hyperparameters(ignore=[*ignore, *not_plain], frame=frame, logger=logger)
    thing.hparams.update(groups)


def _constructors(thing: object, frame: FrameType | None) -> Iterator[FrameType]:
    """Frames of constructors, the base's first; Lightning's own search ends at what stands between two of them."""
    while frame is not None and frame.f_locals.get("self") is thing:
        if "__class__" in frame.f_locals:  # not a wrapper, such as that of takes_former_options
            yield frame
        frame = frame.f_back
