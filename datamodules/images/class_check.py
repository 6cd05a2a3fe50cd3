"""What labels mean: alike in all sources of a batch, and the same as to the model that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datamodules.images.image_dataset import FIELDS
from datamodules.sources.records import Records, RecordSource, has_field
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.families.conditioning import ClassLabels
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel

_REMEDY = (
    "give the source `classes` in the order of the model's, or set allowed.other_classes if the model is to learn "
    "new ones"
)


def check_alike(parts: Sequence[RecordSource]) -> None:
    """See that all sources that are put together have labels, or none has; likewise captions.

    Raises:
        ValueError: Some have and others have not.
    """
    for name in FIELDS if len(parts) > 1 else ():
        found = [has_field(part, name) for part in parts]
        if any(found) and not all(found):
            with_it, without = parts[found.index(True)], parts[found.index(False)]
            raise ValueError(
                f"of the sources that are mixed, {with_it.where(0)} has a {name} and {without.where(0)} has none: give "
                f"all of them a {name}, or none"
            )


def check_classes(records: Records, model: DiffusionModel, *, split: str) -> None:
    """See that labels mean to a class-conditional model what they mean in the data.

    Raises:
        ValueError: The data has more classes than the model, or the model has another name in the place of one.
    """
    conditioner = model.conditioner
    if not isinstance(conditioner, ClassLabels):
        return
    names, highest = records.classes, records.highest_label
    count = max(len(names or ()), 0 if highest is None else highest + 1)
    if count > conditioner.num_classes:
        raise ValueError(
            f"the {split} records have classes 0 to {count - 1}, but the model has {conditioner.num_classes}: labels "
            "must be its class numbers; give the source `classes` in the model's order"
        )
    known = class_names(model)
    for number, name in enumerate(names or ()):
        if number in known and _plain(name) not in known[number]:
            meant = next((place for place, its in known.items() if _plain(name) in its), None)
            told = "does not know it" if meant is None else f"has it as {meant}"
            raise ValueError(
                f"class {number} of the {split} records is {name!r}, but to the model it is "
                f"{sorted(known[number])[0]!r}, and it {told}: {_REMEDY}"
            )


def number_of_classes(model: DiffusionModel | None) -> int | None:
    """How many classes a model has; ``None`` for none."""
    conditioner = None if model is None else model.conditioner
    return conditioner.num_classes if isinstance(conditioner, ClassLabels) else None


def check_batch(batch: Mapping[str, Any], *, classes: int | None, where: Callable[[int], str]) -> None:
    """See that the labels of a batch are classes of the model, before it goes to a device that would not say which.

    Args:
        batch: From a loader, on the CPU.
        classes: How many classes the model has, if it has any.
        where: Tells where a record comes from by its index.

    Raises:
        ConfigurationError: A label is the number of no class.
    """
    if classes is None or "label" not in batch:
        return
    for place in (batch["label"] >= classes).nonzero().flatten().tolist()[:1]:
        raise ConfigurationError(
            f"{where(int(batch['index'][place]))} has label {int(batch['label'][place])}, but the model has {classes} "
            f"classes, 0 to {classes - 1}: labels must be its class numbers; give the source `classes` in the model's "
            "order"
        )


def class_names(model: DiffusionModel) -> dict[int, set[str]]:
    """Names of a pipeline's classes, each with its synonyms, in plain letters; empty where it keeps none."""
    named = [(number, name) for name, number in family_of(model.denoiser).class_ids(model.pipeline).items()]
    kept: Mapping[str, str] = model.pipeline.config.get("id2label") or {}
    named += [(int(number), name) for number, texts in kept.items() for name in (texts, *texts.split(","))]
    found: dict[int, set[str]] = {}
    for number, name in named:
        found.setdefault(number, set()).add(_plain(name))
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
