"""Any image-text model as it is, to be evaluated or scored and not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from blocks.tokens import Edit
from lightning_modules.answering import Evaluation
from lightning_modules.lvlm import LVLMModule
from sparsight.common.errors import ConfigurationError
from sparsight.common.moved import takes_former_options
from sparsight.lvlm.model.load import ModelLoading
from sparsight.lvlm.model.tower import PartNames


@takes_former_options
class LVLMEvaluation(LVLMModule):
    """An image-text model of transformers for ``sparsight test``, ``validate`` and ``analyze``.

    Args:
        base: Folder or hub id of the model, which need not have been trained here.
        evaluation: How the items of an InstructionDataModule are answered.
        loading: How the model is read.
        parts: Where text model, vision towers and projector are, by qualified name; found if not given.
        recipe: Methods that work while the model answers.

    Raises:
        ValueError: It is no image-text model, its parts cannot be told apart, or the recipe cannot work in it.
    """

    def __init__(
        self,
        base: str,
        evaluation: Evaluation | None = None,
        loading: ModelLoading = ModelLoading(),
        parts: PartNames | None = None,
        recipe: Sequence[Edit] | None = None,
    ) -> None:
        super().__init__(base=base, loading=loading, parts=parts, evaluation=evaluation, recipe=recipe)
        self.keep_hyperparameters()
        self.quantise()
        for name, method in ({} if self.recipe is None else self.recipe.weighted).items():
            if method.trained is None:
                rank_zero_warn(f"{name} of model.recipe has weights that were never trained: give it `trained`")

    def trained_names(self) -> set[str]:
        """None: nothing is trained."""
        return set()

    def setup(self, stage: str) -> None:
        """Refuse to train.

        Raises:
            ConfigurationError: ``fit`` was called, or the data are in another model's tokens.
        """
        if stage == "fit":
            raise ConfigurationError(
                f"{type(self).__name__} trains nothing: use lightning_modules.SparseLayerTuning to fit {self.base}"
            )
        super().setup(stage)

    def training_step(self, *arguments: Any) -> None:
        """Never called, but without it Lightning refuses to fit before ``setup`` can say why."""

    def configure_optimizers(self) -> Any:
        """There is nothing to optimise."""
        return None
