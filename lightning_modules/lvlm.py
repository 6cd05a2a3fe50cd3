"""What modules of image-text models share: loading, what must fit before a run, and what they are measured by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from lightning.fabric.utilities import move_data_to_device

from blocks.tokens import Edit
from lightning_modules.answering import Evaluation, Illustrated
from lightning_modules.loses_layers import LosesLayers
from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import ConfigurationError
from sparsight.common.hashes import is_state, kind_of, state_hash
from sparsight.common.quantised.loading import DTYPES
from sparsight.common.quantised.weights import check_quantisation, has_codes, keep_from_ddp
from sparsight.common.training.sharding import is_sharded, shard_parts, split_again
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.show import keep_records
from sparsight.lvlm.export.reload import example_inputs
from sparsight.lvlm.model.images import check_images
from sparsight.lvlm.model.load import ModelLoading, load_lvlm
from sparsight.lvlm.model.processor import load_processor
from sparsight.lvlm.model.provenance import read_provenance
from sparsight.lvlm.model.spare_image import always_read_an_image
from sparsight.lvlm.model.tower import PartNames, find_parts, name_parts
from sparsight.lvlm.scores import LayerScore, ScoreTable, score_layers
from sparsight.lvlm.scores.maps.image_maps import ImageMaps
from sparsight.lvlm.surgery.quantised import quantise_layers, whole_copy
from sparsight.lvlm.surgery.retire import LayerPruning, RetiredLayers

if TYPE_CHECKING:
    from sparsight.lvlm.methods.recipe import Recipe


@runtime_checkable
class Chatting(Protocol):
    """Data in the tokens of a model."""

    chat: ChatFormat | None
    """How conversations are written, once the data are set up."""
    model: str | None
    """Folder or hub id of the model whose tokens these are; that of the module if not given."""


class LVLMModule(LosesLayers):
    """An image-text model that is evaluated, scored layer by layer, and may lose layers along a PruningSchedule.

    Args:
        base: Folder or hub id.
        loading: How it is read.
        parts: Where its parts are; found if not given.
        evaluation: How evaluation items are answered.
        prune: Which layers may be removed.
        max_skipped_steps: How many steps that are not finite are left out before the run ends.
        recipe: Methods that work whenever the model is trained or evaluated.

    Attributes:
        method_weights: Of the recipe's methods, by their names, if any has weights.
    """

    wing = "image-text"
    scores_before_training = True
    frozen_option = "model.loading.dtype"

    def __init__(
        self,
        *,
        base: str,
        loading: ModelLoading,
        parts: PartNames | None = None,
        evaluation: Evaluation | None = None,
        prune: LayerPruning | None = None,
        max_skipped_steps: int = 0,
        recipe: Sequence[Edit] | None = None,
    ) -> None:
        if recipe and prune is not None:
            raise ValueError("recipe names layers by their numbers, which prune changes: leave one of them out")
        if recipe and loading.quantization is not None:
            raise ValueError("recipe reads weights, which loading.quantization holds in codes: set it to null")
        methods = _recipe(recipe) if recipe else None  # refused before weights are loaded
        super().__init__(evaluation=evaluation, max_skipped_steps=max_skipped_steps)
        self.quantised = loading.quantization
        if self.quantised is not None:
            check_quantisation(self._quantised_by)
        self.base, self.revision, self.source = base, loading.revision, loading.source
        self.frozen_dtype = DTYPES[loading.dtype]
        self.model: Any = load_lvlm(base, **loading.options)
        self.base_hash = state_hash(self.model.state_dict())
        self._loading = loading
        self.earlier = read_provenance(base)
        self.parts = find_parts(name_parts(self.model, parts))
        self.depth = len(self.parts.layers)
        if self.evaluation.vicrop is not None:
            self.evaluation.vicrop.check(self.model)
        self.recipe = methods
        self.method_weights: torch.nn.ModuleDict | None = None
        if self.recipe is not None:
            calibrated = self.recipe.is_calibrated
            template = load_processor(base, **self.source).chat_template if calibrated else None
            self.recipe.check(self.model, template if isinstance(template, str) else None)
            self.recipe.fit(self.model)
            if self.recipe.weighted:
                held = {name: method.held.requires_grad_(False) for name, method in self.recipe.weighted.items()}
                self.method_weights = torch.nn.ModuleDict(held)
        self.tuned_layers: list[int] = []
        self.prune = prune
        self.export_name = self.export_name_for({"prune": prune})
        self.retired = RetiredLayers(self.model, self.parts)
        self.removals: list[dict[str, Any]] = []
        self._images_fit = False

    @classmethod
    def export_name_for(cls, options: Mapping[str, Any]) -> str:
        """What ``export_name`` is of a module with these options, before it is made."""
        return "tuned" if options.get("prune") is None else "pruned"

    def was_base(self, recorded: str) -> bool:
        """Whether a hash of another kind, of an earlier version, is that of the base as it is loaded."""
        if kind_of(recorded) == kind_of(self.base_hash):
            return False
        return is_state(recorded, load_lvlm(self.base, **self._loading.options).state_dict())

    @property
    def _quantised_by(self) -> str:
        return f"model.loading.quantization: {self.quantised}"

    def quantise(self, trained: Collection[str] = ()) -> None:
        """Hold frozen linear layers of the decoder in codes, if that is wished.

        Args:
            trained: Names of the parameters that any stage trains.

        Raises:
            ConfigurationError: There is no such layer.
        """
        if self.quantised is not None:
            dtype, option = self.frozen_dtype, self._quantised_by
            quantise_layers(self.model, self.parts, trained=trained, dtype=dtype, option=option)
            keep_from_ddp(self)

    def whole_copy(self) -> Any:
        """The model in main memory, with the base's own weights in the places of codes: what an export is made of."""
        stored = load_lvlm(self.base, **self._loading.options).state_dict() if has_codes(self.model) else {}
        return whole_copy(self.model, stored)

    def configure_model(self) -> None:
        """Split layers, vision towers and the rest over the processes of a ModelParallelStrategy (FSDP2).

        Weights of the recipe's methods are small, and stay whole in every process.

        Raises:
            ConfigurationError: Layers are held in codes, which are not split, or a method uses one out of its place.
        """
        if self.device_mesh is not None and self.quantised is not None:
            raise ConfigurationError(
                f"{self._quantised_by} and ModelParallelStrategy (FSDP2) do not go together: weights in codes cannot "
                "be split over processes; use DDP, where each process holds all codes, or set it to null"
            )
        elsewhere = [] if self.recipe is None else self.recipe.using_layers_elsewhere
        if self.device_mesh is not None and elsewhere:
            raise ConfigurationError(
                f"{', '.join(elsewhere)} of model.recipe uses a decoder layer as an encoder's, out of the place where "
                "ModelParallelStrategy (FSDP2) puts its weights together: set trainer.strategy to ddp"
            )
        if self.device_mesh is not None and not is_sharded(self.model):
            shard_parts(self.model, [*self.parts.vision.values(), *self.parts.layers], self.device_mesh)

    def setup(self, stage: str) -> None:
        """Refuse data in another model's tokens.

        Raises:
            ConfigurationError: The datamodule's tokenizer is not that of the base model, or as ``Answering.setup``.
        """
        super().setup(stage)
        data = datamodule_of(self.trainer)
        if not isinstance(data, Chatting) or data.chat is None or data.model in (None, self.base):
            return
        if data.chat.tokenizer.get_vocab() != load_processor(self.base, **self.source).tokenizer.get_vocab():
            raise ConfigurationError(
                f"data.model {data.model!r} has other tokens than model.base {self.base!r}: set both to the same model"
            )

    def on_fit_start(self) -> None:
        """Refuse what would fail later: images, a reference that answered other items, a validation that fails."""
        self._check_images()
        super().on_fit_start()
        folder = self.trainer.log_dir  # a broadcast: all processes must ask
        if folder and self.trainer.logger and self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            keep_records(datamodule_of(self.trainer), Path(folder))

    def on_validation_start(self) -> None:
        """Refuse images that would fail later, where nothing was trained before."""
        super().on_validation_start()
        self._check_images()

    def on_test_start(self) -> None:
        """Refuse images that would fail later, where nothing was trained before."""
        super().on_test_start()
        self._check_images()

    def _check_images(self) -> None:
        """Let the model read an image of the data, once; all processes read the same, and keep it if they need it."""
        data = datamodule_of(self.trainer)
        inputs = data.example() if isinstance(data, Illustrated) and not self._images_fit else None
        self._images_fit = True
        if inputs is not None:
            with self.trainer.precision_plugin.forward_context():
                check_images(self.model, self.parts, inputs)
            if is_sharded(self.model):
                split_again(self.model)
                always_read_an_image(self.model, self.parts, inputs)

    # -- what it is measured by ------------------------------------------------------------------------------------

    def analyze(self, scores: Sequence[LayerScore], batches: Sequence[Mapping[str, Any]]) -> ScoreTable:
        """Score the decoder layers on calibration batches, under the recipe if there is one.

        Raises:
            ConfigurationError: Methods of the recipe drop tokens, which scores compare before and after a layer.
        """
        dropping = [] if self.recipe is None else self.recipe.dropping
        if dropping:
            raise ConfigurationError(
                f"layers are scored by tokens that are there before and after: leave {' and '.join(dropping)} out of "
                "model.recipe for `analyze`"
            )
        for batch in batches:
            if any(batch["image_keys"]):
                check_images(self.model, self.parts, batch["inputs"])
                break
        facts = {} if self.recipe is None else {"recipe": self.recipe.record()}
        with self.edited():
            return score_layers(self.model, batches, scores, base=self.base, base_hash=self.base_hash, **facts)

    def image_maps(self, maps: ImageMaps, batches: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
        """Draw where attention falls on images of calibration batches, under the recipe if there is one.

        Args:
            maps: What is drawn.
            batches: Of the instruction datamodule.
            folder: For the files.
        """
        tokenizer = load_processor(self.base, **self.source).tokenizer

        def read(ids: list[int]) -> str:
            words = [token for token in ids if token != self.parts.image_token_id]
            return " ".join(tokenizer.decode(words, skip_special_tokens=True).split())

        methods = [] if self.recipe is None else self.recipe.methods
        title = Path(self.base).name if Path(self.base).is_dir() else self.base
        return maps.draw(self.model, batches, folder, methods=methods, decode=read, title=title)

    def benchmark(self, tokens: Sequence[int], **options: Any) -> list[dict[str, Any]]:
        """Measure the recipe against the untouched model, at numbers of image tokens.

        Args:
            tokens: Those numbers.
            options: As of ``sparsight.lvlm.methods.cost.benchmark.benchmark_recipe``.

        Raises:
            ConfigurationError: There is no recipe, or it breaks a promise on this model.
        """
        from sparsight.lvlm.methods.cost.benchmark import benchmark_recipe

        if self.recipe is None:
            raise ConfigurationError("benchmark compares a recipe with the untouched model: give model.recipe")
        processor = load_processor(self.base, **self.source)
        self.model.eval()

        def prompt(images: int) -> dict[str, Any]:
            return move_data_to_device(example_inputs(processor, images=images), self.device)

        return benchmark_recipe(self.model, self.recipe, prompt, tokens=tokens, **options)


def _recipe(methods: Sequence[Edit]) -> Recipe:
    from sparsight.lvlm.methods.recipe import Recipe  # imports models of transformers

    return Recipe(methods)
