"""The data of a run: asked of its trainer, and what they take from the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from lightning.pytorch import Trainer

from sparsight.common.errors import ConfigurationError

Wing = Literal["diffusion", "image-text"]
DATA_OF = {  # what serves models of a wing
    "diffusion": "ImageDataModule or TeacherSamplesDataModule",
    "image-text": "InstructionDataModule or ReformEvalDataModule",
}


class OfWing:
    """Base of modules and data that serve models of one wing.

    Attributes:
        wing: Which; unknown of users' own.
    """

    wing: ClassVar[Wing | None] = None


class Follower(OfWing):
    """Base of data that need to know what the module of their run knows: it is written once, at the module.

    Attributes:
        follows: Options that the command takes from an option of the module where they are not given.
        names: Those among them that name a model; its revision, variant and trust go with the name.
        agrees: Those among them that may not differ from the module's while it trains.
    """

    follows: ClassVar[Mapping[str, str]] = {}
    names: ClassVar[Sequence[str]] = ()
    agrees: ClassVar[Sequence[str]] = ()


def check_wings(module: Any, data: Any) -> None:
    """Refuse data of one wing for a module of the other.

    Args:
        module: Its class.
        data: Class of the data.

    Raises:
        ConfigurationError: They do not go together.
    """
    ours, theirs = (
        each.wing if isinstance(each, type) and issubclass(each, OfWing) else None for each in (module, data)
    )
    if ours and theirs and ours != theirs:
        raise ConfigurationError(
            f"data: {data.__name__} serves {theirs} models, and {module.__name__} has one of {ours}: give --data "
            f"{DATA_OF[ours]}, or a module of the other kind"
        )


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
