"""The data of a run: asked of its trainer, and what they take from the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from lightning.pytorch import Trainer


class Follower:
    """Base of data that need to know what the module of their run knows: it is written once, at the module.

    Attributes:
        follows: Options that the command takes from an option of the module where they are not given.
        names: Those among them that name a model; its revision, variant and trust go with the name.
        agrees: Those among them that may not differ from the module's while it trains.
    """

    follows: ClassVar[Mapping[str, str]] = {}
    names: ClassVar[Sequence[str]] = ()
    agrees: ClassVar[Sequence[str]] = ()


def datamodule_of(trainer: Trainer | None) -> Any:
    """The datamodule of a trainer; none before it is given one, and of a run that is given loaders."""
    return getattr(trainer, "datamodule", None)  # Lightning sets it in `fit` and its like, and declares it nowhere


@runtime_checkable
class LooksAhead(Protocol):
    """A loader that knows which batch comes after the one that it delivered last.

    Attributes:
        upcoming: That batch, as it was collated; none at the end of an epoch.
    """

    upcoming: Any


def upcoming_batch(trainer: Trainer) -> Any:
    """The batch of training that comes next; none if that is not known."""
    loader = trainer.train_dataloader
    return loader.upcoming if isinstance(loader, LooksAhead) else None
