"""A look at all samples of a task before a run: each is read whole, and put to the model's processor once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from datamodules.conversations.instruction_dataset import image_key
from datamodules.evaluation.dataset import Asker, Place, shown_images
from datamodules.evaluation.task import EvaluationTask
from datamodules.sources.records import CorruptRecord, digest
from sparsight.common.training.processes import everywhere, own_share
from sparsight.evaluation.reform_eval.sample import Sample

_SHOWN = 5  # problems of a message
_log = logging.getLogger(__name__)


class Checked(NamedTuple):
    """A sample that can be used.

    Args:
        id: Its id.
        content: Hash of all that is asked about, pixels included, wherever they are stored.
    """

    id: str
    content: str


class Looked(NamedTuple):
    """What was found in a task.

    Args:
        usable: Samples that are asked about, by their positions.
        left_out: What is wrong with each of the others, which says where it comes from.
    """

    usable: dict[int, Checked]
    left_out: list[str]


def check_samples(
    asker: Asker, number: int, drawn: Sequence[int], *, max_corrupt_share: float, workers: int = 0
) -> Looked:
    """See which of a task's samples can be used; processes and their workers share the work.

    Args:
        asker: How samples are put.
        number: Position of the task among the asker's.
        drawn: Positions of the samples in the task.
        max_corrupt_share: Share of them, 0 to 1, that may be unusable.
        workers: Loader processes.

    Raises:
        ValueError: More cannot be used, or none can; it names the first of them.
    """
    task, own = asker.tasks[number], own_share(drawn)
    loader = DataLoader(_Samples(asker, number, own), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    looked_at = dict(zip(own, loader, strict=True))
    everything = {index: each for part in everywhere(looked_at) for index, each in part.items()}
    found: dict[int, Checked] = {}
    known: dict[str, int] = {}
    problems: list[str] = []
    for index in drawn:
        each = everything[index]
        if isinstance(each, str):
            problems.append(each)
        elif each.id in known:
            problems.append(
                f"{task.where(index)}: it and {task.where(known[each.id])} have the same id {each.id!r}, of which the "
                "first is asked"
            )
        else:
            found[index], known[each.id] = each, index
    told = f"{len(problems)} of {len(drawn)} samples of task {task.name} cannot be used"
    shown = "; ".join(problems[:_SHOWN]) + (" ..." if len(problems) > _SHOWN else "")
    allowed = int(max_corrupt_share * len(drawn))
    if len(problems) > allowed or not found:
        raise ValueError(
            f"{told}: {shown}. Repair them or remove them from the data, or raise allowed.corrupt_share, which is "
            f"{max_corrupt_share} and allows {allowed}{task.remedy}"
        )
    if problems:
        _warn(f"{told} and are left out: {shown}; report.json lists them")
    return Looked(found, problems)


@rank_zero_only
def _warn(text: str) -> None:
    _log.warning(text)


class _Samples(Dataset):
    """What is found about each sample: its id and content, or what is wrong with it."""

    def __init__(self, asker: Asker, number: int, drawn: Sequence[int]) -> None:
        self.asker, self.number, self.drawn = asker, number, drawn

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, place: int) -> Checked | str:
        index, task = self.drawn[place], self.asker.tasks[self.number]
        try:
            sample = task[index]
            for method in self.asker.methods(task):
                self.asker.ask(Place(method, self.number, index, sample.id, run=0), sample)
            return Checked(sample.id, _content(task, sample))
        except CorruptRecord as error:
            return str(error)


def _content(task: EvaluationTask, sample: Sample) -> str:
    keys = [image_key(image) for image in shown_images(sample.images)]
    more = ([task.rule, sample.categories] if task.rule else []) + ([task.look] if task.look else [])
    return digest([task.formulation, task.instructions, replace(sample, images=()), keys, *more])


def _as_it_is(found: Any) -> Any:
    return found
