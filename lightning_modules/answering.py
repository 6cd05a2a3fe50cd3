"""Image-text models that answer the items of an evaluation: by task, in validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_modules.base import TrainedPartsModule
from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.sharding import is_sharded, split_again
from sparsight.evaluation.questions.answer import Answered, answer_questions
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.questions.task_scores import GROUPS, Item, TaskScores
from sparsight.evaluation.reform_eval.answer import plain_answers
from sparsight.lvlm.answer.vicrop import ViCrop
from sparsight.lvlm.chat.put import PutAnew
from sparsight.lvlm.model.processor import load_processor
from sparsight.lvlm.surgery.retire import RetiredLayers

if TYPE_CHECKING:
    from sparsight.lvlm.methods.recipe import Recipe


@dataclass
class Evaluation:
    """How evaluation items are answered.

    Args:
        new_tokens: Most tokens that the model may write for an item; 0 for likelihoods alone.
        reference: ``scores_*.json`` of another evaluation on the same items, e.g. of the base model: scores are then
            logged as shares of its scores too.
        vicrop: Find, by two short passes more, the part of the first image that a question is about, and show it as
            one more image behind it.
    """

    new_tokens: int = 0
    reference: str | None = None
    vicrop: ViCrop | None = None


@runtime_checkable
class Illustrated(Protocol):
    """Data with images."""

    def example(self) -> dict[str, Any] | None:
        """Model inputs of a sample with an image, the same on all processes; none if none has any."""
        ...


@runtime_checkable
class Split(Protocol):
    """Data in splits, each of which has a data set once they are set up."""

    datasets: Mapping[str, Any]


class Answering(TrainedPartsModule):
    """Base of modules whose model answers questions; a subclass loads it.

    Args:
        evaluation: How evaluation items are answered.
        max_skipped_steps: How many steps that are not finite are left out before the run ends.

    Attributes:
        model: The model.
        base: Folder or hub id that it came from.
        source: Revision and trust that go with that.
        retired: Layers that are passed by.
        recipe: Methods that work whenever the model does, if any.
    """

    model: Any
    base: str
    source: dict[str, Any]
    retired: RetiredLayers
    recipe: Recipe | None = None

    def __init__(self, *, evaluation: Evaluation | None, max_skipped_steps: int) -> None:
        super().__init__(max_skipped_steps=max_skipped_steps)
        self.evaluation = evaluation or Evaluation()
        self.reference = None if self.evaluation.reference is None else _reference(self.evaluation.reference)
        self._scores = TaskScores()
        self._told_of_losses = False
        self._tokenizer: Any = None

    def on_fit_start(self) -> None:
        """Refuse a reference that answered other items, and a validation that would fail later."""
        self._check_reference()
        self._rehearse_validation()

    def _check_reference(self) -> None:
        """Compare places in the source before training; after an evaluation the items themselves are compared."""
        dataset = _datasets(datamodule_of(self.trainer)).get("val")
        limit = self.trainer.limit_val_batches
        if self.reference is None or dataset is None or not (isinstance(limit, float) and limit == 1.0):  # 1 is a batch
            return
        there, here = set(self.reference.items), set(map(int, dataset.indices))
        if not there <= here or len(here - there) > dataset.max_corrupt:  # the unreadable ones are in no scores
            raise ConfigurationError(
                f"evaluation.reference {self.evaluation.reference} has answered {len(there)} items, not the same "
                f"{len(here)} as the validation data hold: let it answer them with the same data and data.limit"
            )

    def _rehearse_validation(self) -> None:
        """Answer a batch of validation items where the trainer does not try any before training."""
        data = datamodule_of(self.trainer)
        if self.trainer.num_sanity_val_steps or not self.trainer.limit_val_batches or "val" not in _datasets(data):
            return
        with self.trainer.precision_plugin.forward_context(), torch.no_grad():
            for batch in islice(iter(data.val_dataloader()), 1):
                self._answered(self.trainer.strategy.batch_to_device(batch))
        if is_sharded(self.model):
            split_again(self.model)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Let the model, without its retired layers, answer the items of a batch."""
        self._answer(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, dict[str, Any]] | None:
        """Let the model answer the items of a batch; those of ReForm-Eval go to the callback that keeps them."""
        if "method" not in batch:
            self._answer(batch)
            return None
        return plain_answers(self._answered(batch))

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Prediction draws images, which these models do not.

        Raises:
            ConfigurationError: Always; it says what to use.
        """
        raise ConfigurationError(
            f"{type(self).__name__} draws no images: `sparsight test` with --model.evaluation.new_tokens 30 writes "
            "what the model answers to every item into scores_test.json"
        )

    def on_validation_epoch_end(self) -> None:
        """Loss of right answers and accuracy by task, over all batches and processes."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Loss of right answers and accuracy by task on the test data."""
        self._log_scores("test")

    def _answer(self, batch: Mapping[str, Any]) -> None:
        self._scores.add(map(Item.of, self._answered(batch)))

    def _answered(self, batch: Mapping[str, Any]) -> list[Answered]:
        """A suite says by which method; items are answered by likelihood, and in writing if that is asked for."""
        new_tokens = batch.get("new_tokens", self.evaluation.new_tokens)
        methods: list[Method] = ["likelihood", "generation"] if new_tokens else ["likelihood"]
        if "method" in batch:
            methods = [batch["method"]]
        with self.retired.taken_out():
            batch = self._looked_at_again(batch)
            with self.edited():
                return answer_questions(
                    self.model, self._own_tokenizer(), batch, methods=methods, new_tokens=new_tokens
                )

    def setup(self, stage: str) -> None:
        """Ask data for their questions where these are put anew.

        Raises:
            ConfigurationError: They cannot give them.
        """
        super().setup(stage)
        data = datamodule_of(self.trainer)
        if self.evaluation.vicrop is None or (stage == "fit" and not self.trainer.limit_val_batches):
            return
        if not isinstance(data, PutAnew):
            raise ConfigurationError(
                f"evaluation.vicrop asks questions with one more image, which {type(data).__name__} cannot put anew: "
                "use InstructionDataModule or ReformEvalDataModule, or set it to null"
            )
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigurationError(
                "evaluation.vicrop has each process look at images of its own, for which the others would wait under "
                "ModelParallelStrategy (FSDP2): use ddp, or set it to null"
            )
        data.carry_questions()

    def _looked_at_again(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch whose images have a part of them beside them, if that is wished."""
        vicrop, data = self.evaluation.vicrop, datamodule_of(self.trainer)
        if vicrop is None or not any(put.images for put in batch["put"]):
            return batch
        assert isinstance(data, PutAnew) and data.chat is not None
        puts = [vicrop.once_more(self.model, data.chat.processor, put) for put in batch["put"]]
        return {**batch, **move_data_to_device(data.joined(puts), self.device)}

    def edited(self, *, learns: bool = False) -> AbstractContextManager[None]:
        """The model with the methods of its recipe, as they are while it trains or at all other times."""
        return nullcontext() if self.recipe is None else self.recipe.on(self.model, learns=learns)

    def _own_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_processor(self.base, **self.source).tokenizer
        return self._tokenizer

    def _log_scores(self, prefix: str) -> None:
        scores, self._scores = self._scores, TaskScores()
        scores.gather()
        if not scores.items:
            return
        self.log(f"{prefix}/loss", scores.loss(), prog_bar=True)
        found = scores.accuracies()
        self.log_dict({f"{prefix}/accuracy/{name}": value for name, value in found.items()})
        if not (found or self._told_of_losses):
            self._told_of_losses = True
            rank_zero_info(f"{prefix}: no record has `candidates` and `answer`, so its losses are all that is measured")
        unfinished = sum(item.unfinished for item in scores.items.values())
        if unfinished:
            rank_zero_warn(
                f"{prefix}: {unfinished} of {len(scores.items)} written answers are thoughts without an end, which "
                "count as wrong: raise evaluation.new_tokens, or set data.chat.template_kwargs to "
                "{enable_thinking: false} if the chat template knows it"
            )
        for name in GROUPS:
            if f"likelihood/{name}" in found:
                self.log(f"{prefix}/{name}", found[f"likelihood/{name}"], prog_bar=True)
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # a broadcast: all processes must ask
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            scores.save(Path(folder, f"scores_{prefix}.json"))
        if self.reference is not None and not (self.trainer.sanity_checking or self.trainer.fast_dev_run):  # type: ignore[attr-defined]
            self._log_kept(prefix, scores.kept(self.reference))

    def _log_kept(self, prefix: str, kept: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in kept.items() if value is not None}
        self.log_dict({f"{prefix}/kept/{name}": value for name, value in known.items()})
        told = [f"{name} {value:.1%}" for name, value in known.items() if name.rpartition("/")[2] in GROUPS]
        zero = [name for name in kept if name not in known]
        without = f"; 0 there, so without a share: {', '.join(zero)}" if zero else ""
        source = self.evaluation.reference
        rank_zero_info(f"{prefix}: kept of the scores in {source}: {', '.join(told) or 'none'}{without}")


def _datasets(datamodule: Any) -> Mapping[str, Any]:
    """The datasets of an InstructionDataModule by split; others have none."""
    return datamodule.datasets if isinstance(datamodule, Split) else {}


def _reference(path: str) -> TaskScores:
    try:
        return TaskScores.load(path)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationError(f"evaluation.reference: {error}") from error
