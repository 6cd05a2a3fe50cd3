"""What the verbs do, as functions: distil, tune and evaluate without a YAML file.

They build the modules that the command builds, train them with the command's trainer, and return them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from blocks import Site, TokenMixer
from lightning_modules import AttentionDistillation, LVLMEvaluation, SparseLayerTuning
from sparsight.command.options import options_of_trainer
from sparsight.command.output.quiet import quieten
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.errors import ConfigurationError, need_kind, need_list, need_options, need_whole
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.train.stages import Stage
from sparsight.lvlm.export.write import processor_of
from sparsight.lvlm.surgery.selection import QUARTER, LayerSelection, Uniform, need_rule
from sparsight.lvlm.train.stages import TuningStage
from sparsight.publish.export import check_destination, export

TrainerOptions = Mapping[str, Any]


def distill(
    teacher: str | Path,
    mixer: Callable[[Site], TokenMixer] | Sequence[PlanEntry],
    data: LightningDataModule,
    *,
    stages: Sequence[Stage] = (Stage("layerwise", 2000, lr=1e-3), Stage("end_to_end", 4000, lr=1e-4)),
    output: str | Path | None = None,
    trainer: TrainerOptions | None = None,
    **options: Any,
) -> AttentionDistillation:
    """Distil a diffusion model's self-attention into token mixers, as ``sparsight fit`` does.

    Args:
        teacher: Diffusers pipeline: a folder, a shipped model's name or a hub id.
        mixer: Makes a mixer for a site, such as ``DeltaConvBlock`` or ``functools.partial(DeltaConvBlock,
            kernel_size=5)``; or a plan of several.
        data: What it is trained on, such as an ``ImageDataModule``.
        stages: Layer by layer, then as a whole, unless given.
        output: Folder for the exported student; nothing is exported if not given.
        trainer: Options of Lightning's Trainer, such as ``{"devices": 2, "precision": "bf16-mixed"}``.
        options: Of ``AttentionDistillation``, such as ``sites`` and ``sampling``.

    Returns:
        The module with teacher and student; ``module.denoiser`` draws as the student.

    Raises:
        ConfigurationError: Teacher, mixer and data do not fit each other.
        ValueError: ``output`` exists already, or an option is out of range.
    """
    need_kind("teacher", teacher, (str, Path), "a folder, a shipped model's name or a hub id")
    need_list("stages", stages, Stage)
    other = isinstance(mixer, nn.Module) or (isinstance(mixer, type) and not issubclass(mixer, TokenMixer))
    if other or isinstance(mixer, str) or not (callable(mixer) or isinstance(mixer, Sequence)):
        raise ConfigurationError(
            f"mixer is {mixer!r}: give a class, such as blocks.DeltaConvBlock, or a list of PlanEntry"
        )
    _check(AttentionDistillation, data, trainer=trainer, options=options)
    factory = {"mixer": mixer} if callable(mixer) else {"plan": mixer}
    module = AttentionDistillation(str(teacher), stages=stages, **factory, **options)
    _train(module, data, output=output, trainer=trainer)
    return module


def tune(
    base: str | Path,
    data: LightningDataModule,
    *,
    layers: LayerSelection | None = None,
    stages: Sequence[TuningStage] = (TuningStage(1000),),
    output: str | Path | None = None,
    trainer: TrainerOptions | None = None,
    **options: Any,
) -> SparseLayerTuning:
    """Tune a sparse set of an image-text model's decoder layers, as ``sparsight fit`` does.

    Args:
        base: The model: a folder or a hub id.
        data: Conversations, such as an ``InstructionDataModule``.
        layers: Which are tuned; a uniform quarter if not given.
        stages: One of 1 000 steps unless given.
        output: Folder for the exported model; nothing is exported if not given.
        trainer: Options of Lightning's Trainer.
        options: Of ``SparseLayerTuning``, such as ``lora``, ``prune`` and ``loading``.

    Returns:
        The module; ``module.model`` is transformers' model.

    Raises:
        ConfigurationError: Model, layers and data do not fit each other.
        ValueError: ``output`` exists already, or an option is out of range.
    """
    need_kind("base", base, (str, Path), "a folder or a hub id")
    need_list("stages", stages, TuningStage)
    layers = need_rule(layers or Uniform(ratio=QUARTER))
    _check(SparseLayerTuning, data, trainer=trainer, options=options)
    module = SparseLayerTuning(str(base), stages=stages, layers=layers, **options)
    _train(module, data, output=output, trainer=trainer)
    return module


def evaluate(
    model: LightningModule | str,
    data: LightningDataModule,
    *,
    split: str = "val",
    trainer: TrainerOptions | None = None,
    **options: Any,
) -> dict[str, float]:
    """Metrics on validation or test data, as ``sparsight validate`` and ``sparsight test`` give them.

    Args:
        model: A module of this package, or an image-text model's folder or hub id.
        data: Has the data.
        split: ``val`` or ``test``.
        trainer: Options of Lightning's Trainer, callbacks such as ``GenerationMetrics`` among them.
        options: Of ``LVLMEvaluation``, where ``model`` is a name.

    Returns:
        Values by name, such as ``val/output_relative_l2``.

    Raises:
        ValueError: The split has another name.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}; allowed: val, test")
    quieten()
    module = LVLMEvaluation(model, **options) if isinstance(model, str) else model
    made = SparsightTrainer(**{"logger": False, "enable_checkpointing": False} | dict(trainer or {}))
    run = made.validate if split == "val" else made.test
    return {name: float(value) for result in run(module, data, verbose=False) for name, value in result.items()}


def _check(kind: type, data: Any, *, trainer: TrainerOptions | None, options: Mapping[str, Any]) -> None:
    """Refuse what the parser of the command would refuse, before weights are loaded."""
    need_kind("data", data, LightningDataModule, "a datamodule, such as datamodules.ImageDataModule(...)")
    need_kind("trainer", trainer or {}, Mapping, 'a dict of options, such as {"devices": 2}')
    need_options(list(inspect.signature(kind).parameters), options)
    need_whole(seed=options.get("seed", 0))
    need_options(options_of_trainer(), trainer or {}, where="trainer.")
    callbacks = (trainer or {}).get("callbacks")
    if callbacks is not None and not isinstance(callbacks, Callback):
        need_list("trainer.callbacks", callbacks, Callback)


def _train(
    module: Any, data: LightningDataModule, *, output: str | Path | None, trainer: TrainerOptions | None
) -> None:
    if output is not None:
        check_destination(output, overwrite=False)
    quieten()
    options: dict[str, Any] = {"max_epochs": -1, "default_root_dir": "runs"} | dict(trainer or {})
    SparsightTrainer(**options).fit(module, datamodule=data)
    if output is not None:
        export(module, output, processor=processor_of(data))
        rank_zero_info(f"Exported to {output}")
