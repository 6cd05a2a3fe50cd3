"""What modules of image-text models share: loading, evaluation by task, layer scores, layers that retire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_modules.base import TrainedPartsModule
from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.hashes import state_hash
from sparsight.common.training.processes import averaged, everywhere
from sparsight.common.training.sharding import is_sharded, shard_parts, split_again
from sparsight.evaluation.questions.answer import Answered, answer_questions
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.questions.task_scores import GROUPS, Item, TaskScores
from sparsight.evaluation.reform_eval.answer import plain_answers
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.model.load import DTYPES, Dtype, load_lvlm
from sparsight.lvlm.model.pictures import check_pictures
from sparsight.lvlm.model.processor import load_processor
from sparsight.lvlm.model.provenance import read_provenance
from sparsight.lvlm.model.spare_picture import always_read_a_picture
from sparsight.lvlm.model.tower import PartNames, find_parts, name_parts
from sparsight.lvlm.scores import LayerScore, ScoreTable, score_layers
from sparsight.lvlm.surgery.retire import LayerPruning, RetiredLayers, measurement, removable_layers

SITE = "layers."  # names of decoder layers as sites of a schedule


@dataclass
class Evaluation:
    """How evaluation items are answered.

    Args:
        new_tokens: Most tokens that the model may write for an item; 0 for likelihoods alone.
        reference: ``scores_*.json`` of another evaluation on the same items, e.g. of the base model: scores are then
            logged as shares of its scores too.
    """

    new_tokens: int = 0
    reference: str | None = None


@runtime_checkable
class Chatting(Protocol):
    """Data in the tokens of a model."""

    chat: ChatFormat | None
    """How conversations are written, once the data are set up."""
    model: str | None
    """Folder or hub id of the model whose tokens these are; that of the module if not given."""


@runtime_checkable
class Pictured(Protocol):
    """Data with pictures."""

    def example(self) -> dict[str, Any] | None:
        """Model inputs of a sample with a picture, the same on all processes; none if none has any."""
        ...


@runtime_checkable
class Split(Protocol):
    """Data in splits, each of which has a data set once they are set up."""

    datasets: Mapping[str, Any]


class LVLMModule(TrainedPartsModule):
    """An image-text model that is evaluated, scored layer by layer, and may lose layers along a PruningSchedule.

    Args:
        base: Folder or hub id.
        dtype: Precision of its weights.
        attn_implementation: transformers' name of the attention kernel.
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.
        evaluation: How evaluation items are answered.
        prune: Which layers may be removed.
        max_skipped_steps: How many steps that are not finite are left out before the run ends.
        parts: Where text model, vision towers and projector are; found if not given.

    Attributes:
        tuned_layers: Decoder layers that any stage tunes.
        removals: Steps at which layers left, in order, each with its layers and the numbers they were chosen by.
    """

    scores_before_training = True
    frozen_option = "model.dtype"

    def __init__(
        self,
        *,
        base: str,
        dtype: Dtype,
        attn_implementation: str | None,
        revision: str | None,
        trust_remote_code: bool,
        evaluation: Evaluation | None,
        prune: LayerPruning | None,
        max_skipped_steps: int = 0,
        parts: PartNames | None = None,
    ) -> None:
        super().__init__(max_skipped_steps=max_skipped_steps)
        self.evaluation = evaluation or Evaluation()
        self.reference = None if self.evaluation.reference is None else TaskScores.load(self.evaluation.reference)
        self.base, self.revision, self.frozen_dtype = base, revision, DTYPES[dtype]
        self.source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.model: Any = load_lvlm(base, dtype=dtype, attn_implementation=attn_implementation, **self.source)
        self.base_hash = state_hash(self.model.state_dict())
        self.earlier = read_provenance(base)
        self.parts = find_parts(name_parts(self.model, parts))
        self.depth = len(self.parts.layers)
        self.tuned_layers: list[int] = []
        self.prune = prune
        self.export_name = "tuned" if prune is None else "pruned"
        self.retired = RetiredLayers(self.model, self.parts)
        self.removals: list[dict[str, Any]] = []
        self._measured: dict[str, Any] | None = None  # what the next removal is chosen by
        self._scores = TaskScores()
        self._tokenizer: Any = None
        self._pictures_fit = False

    def configure_model(self) -> None:
        """Split layers, vision towers and the rest over the processes of a ModelParallelStrategy (FSDP2)."""
        if self.device_mesh is not None and not is_sharded(self.model):
            shard_parts(self.model, [*self.parts.vision.values(), *self.parts.layers], self.device_mesh)

    def setup(self, stage: str) -> None:
        """Refuse data in another model's tokens.

        Raises:
            ConfigurationError: The datamodule's tokenizer is not that of the base model.
        """
        data = datamodule_of(self.trainer)
        if not isinstance(data, Chatting) or data.chat is None or data.model in (None, self.base):
            return
        if data.chat.tokenizer.get_vocab() != load_processor(self.base, **self.source).tokenizer.get_vocab():
            raise ConfigurationError(
                f"data.model {data.model!r} has other tokens than model.base {self.base!r}: set both to the same model"
            )

    def on_fit_start(self) -> None:
        """Refuse what would fail later: pictures, a reference that answered other items, a validation that fails."""
        self._check_pictures()
        self._check_reference()
        self._rehearse_validation()

    def on_validation_start(self) -> None:
        """Refuse pictures that would fail later, where nothing was trained before."""
        super().on_validation_start()
        self._check_pictures()

    def on_test_start(self) -> None:
        """Refuse pictures that would fail later, where nothing was trained before."""
        super().on_test_start()
        self._check_pictures()

    def _check_pictures(self) -> None:
        """Let the model read a picture of the data, once; all processes read the same, and keep it if they need it."""
        data = datamodule_of(self.trainer)
        inputs = data.example() if isinstance(data, Pictured) and not self._pictures_fit else None
        self._pictures_fit = True
        if inputs is not None:
            with self.trainer.precision_plugin.forward_context():
                check_pictures(self.model, self.parts, inputs)
            if is_sharded(self.model):
                split_again(self.model)
                always_read_a_picture(self.model, self.parts, inputs)

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

    # -- evaluation ------------------------------------------------------------------------------------------------

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
            return answer_questions(self.model, self._own_tokenizer(), batch, methods=methods, new_tokens=new_tokens)

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
        unfinished = sum(item.unfinished for item in scores.items.values())
        if unfinished:
            rank_zero_warn(
                f"{prefix}: {unfinished} of {len(scores.items)} written answers are thoughts without an end, which "
                "count as wrong: raise evaluation.new_tokens, or set data.chat_template_kwargs to "
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

    # -- layers ----------------------------------------------------------------------------------------------------

    def analyze(self, scores: Sequence[LayerScore], batches: Sequence[Mapping[str, Any]]) -> ScoreTable:
        """Score the decoder layers on calibration batches."""
        for batch in batches:
            if any(batch["image_keys"]):
                check_pictures(self.model, self.parts, batch["inputs"])
                break
        return score_layers(self.model, batches, scores, base=self.base, base_hash=self.base_hash)

    def sites(self) -> list[str]:
        """Names of the decoder layers that may be removed.

        Raises:
            ValueError: The module is not set up to lose layers.
        """
        if self.prune is None:
            raise ValueError("the module has no `prune`: give it, with a score, to let a schedule remove layers")
        tuned_before = [] if self.earlier is None else self.earlier["tuned_layers_now"]
        found = removable_layers(
            self.model, self.prune, depth=self.depth, tuned=self.tuned_layers, tuned_before=tuned_before
        )
        return [f"{SITE}{index}" for index in found]

    def score(self) -> dict[str, float]:
        """Importance of every removable layer, as the model now is, on the first training batches of all processes."""
        assert self.prune is not None
        drawn = islice(iter(datamodule_of(self.trainer).train_dataloader()), self.prune.batches)
        batches = [self.trainer.strategy.batch_to_device(batch) for batch in drawn]
        with self.trainer.precision_plugin.forward_context():
            table = score_layers(self.model, batches, [self.prune.score])
        (values,) = table.values.values()
        known = torch.tensor([float("inf") if value is None else value for value in values], device=self.device)
        mean = averaged(known).tolist()
        self._measured = measurement(self.prune.score.name, mean, everywhere(table.facts))
        return {name: mean[layer_of(name)] for name in self.sites()}

    def distance(self, one: str, other: str) -> int:
        """How many layers two sites are apart."""
        return abs(layer_of(one) - layer_of(other))

    def retire(self, names: Sequence[str]) -> None:
        """Pass these layers by, and remember by which numbers those that are new among them were chosen."""
        layers = [layer_of(name) for name in names]
        leaving = [layer for layer in layers if layer not in self.retired.indices]
        if leaving:
            self.removals.append({"step": self.global_step, "layers": leaving, "measured": self._measured})
            self._measured = None
        self.retired.set(layers)


def _datasets(datamodule: Any) -> Mapping[str, Any]:
    """The datasets of an InstructionDataModule by split; others have none."""
    return datamodule.datasets if isinstance(datamodule, Split) else {}


def layer_of(site: str) -> int:
    """Number of the decoder layer that a site's name means."""
    return int(site.removeprefix(SITE))
