"""From a trained module to a verified folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lightning.pytorch.utilities import rank_zero_info

from sparsight.common.disk.folders import put_back, whole_folder
from sparsight.common.errors import ConfigurationError
from sparsight.publish.checkpoint import restore
from sparsight.publish.facts import Base, Run, describe_base, read_metrics
from sparsight.publish.hub import check_repo, push, would_go
from sparsight.publish.trained import check_trained

SOURCES = ("teacher", "pretrained", "base")  # options of modules that name the model they start from


@runtime_checkable
class Exportable(Protocol):
    """What a LightningModule offers so that it can be exported."""

    hparams: Any
    steps_taken: int

    def untrained(self) -> str | None:
        """What should have been trained and never was, in words; none if there is nothing of that kind."""
        ...

    def write_export(
        self,
        folder: Path,
        name: str,
        *,
        run: Run,
        base: Base | None,
        lacking: str | None,
        licence: dict[str, Any],
        fp16: bool,
        processor: Any,
    ) -> None:
        """Write ``folder``, load it in a fresh process and compare; arguments as those of ``export``."""
        ...

    def rehearse_export(self, processor: Any) -> None:
        """Try what an export needs besides trained weights."""
        ...


@runtime_checkable
class Named(Protocol):
    """A module that says how the folder of its export is called unless the user does."""

    export_name: str


@runtime_checkable
class NamesExport(Protocol):
    """A class of modules that says so before one is made."""

    def export_name_for(self, options: Mapping[str, Any]) -> str:
        """What the folder is called, by the module's options."""
        ...


def export(
    module: Any,
    output: str | Path,
    *,
    run: Run | None = None,
    fp16: bool = True,
    overwrite: bool = False,
    untrained: bool = False,
    name: str | None = None,
    licence: str | None = None,
    processor: Any = None,
) -> Path:
    """Write a folder, load it in a fresh process, compare, and only then let it appear; ``module`` stays as it is.

    Of a diffusion model it holds the pipeline, in it the denoiser with its code, ``delta`` (for a distilled student)
    and a model card; of an image-text model what transformers saves, with a card and ``sparsight.json``.

    Args:
        module: AttentionDistillation, DenoiserTraining, SparseLayerTuning, or another ``Exportable``.
        output: The folder to make.
        run: What the card tells about the training.
        fp16: Write half-precision weights of a denoiser as well, as ``variant="fp16"``; image-text models are written
            in the precision of their frozen part alone.
        overwrite: Replace an earlier export at ``output``.
        untrained: Export parts that should have been trained and never were, and say so in the card.
        name: How the card says that the export is loaded, e.g. a hub id; the folder's name if not given.
        licence: Hugging Face's identifier of the licence; that of the base model's card if not given.
        processor: Of an image-text model, as its data were made with; the base model's if not given.

    Returns:
        The folder.

    Raises:
        ConfigurationError: Nothing was trained although something has to be, and ``untrained`` is not set.
        ValueError: ``output`` exists, a mixer cannot travel, no site was handed over to its mixer yet, or the module
            has no model to export.
        RuntimeError: The folder does not load, or its outputs differ; nothing is left at ``output``.
    """
    _check_exportable(module)
    destination = check_destination(output, overwrite=overwrite)
    run = run or Run()
    lacking = check_trained(module, told=run.steps, untrained=untrained)
    if run.steps is None or lacking is not None:
        run = replace(run, steps=module.steps_taken if lacking is None else 0)
    base = base_of(module)
    with whole_folder(destination) as partial:
        module.write_export(
            partial,
            name or destination.name,
            run=run,
            base=base,
            lacking=lacking,
            licence=_licence(licence, base),
            fp16=fp16,
            processor=processor,
        )
    return destination


def rehearse(module: Any, *, processor: Any = None) -> None:
    """Try what an export needs besides trained weights.

    Args:
        module: What is about to be trained; stays as it is.
        processor: Of an image-text model, as its data are made with; the base model's if not given.

    Raises:
        ConfigurationError: The export of the trained module would fail.
        ValueError: The module has nothing that can be exported.
    """
    _check_exportable(module)
    module.rehearse_export(processor)


def _check_exportable(module: Any) -> None:
    if not isinstance(module, Exportable):
        raise ValueError(
            f"{type(module).__name__} has neither a diffusion nor an image-text model to export that it trains: give a "
            "LightningModule of this project, such as what sparsight.distill returns"
        )


def export_and_push(
    module: Any,
    output: Path,
    *,
    checkpoint: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    run: Run | None = None,
    metrics: str | None = None,
    repo: str | None = None,
    private: bool = True,
    dry_run: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """What the ``export`` verb does: weights from a checkpoint, folder, upload.

    Args:
        module: The module to export.
        output: The folder to make.
        checkpoint: Checkpoint to take weights from; none exports the module as it is.
        weights: Which of the checkpoint's weights.
        run: What is known of the run, if there is no checkpoint.
        metrics: File of ``sparsight.publish.facts.read_metrics``.
        repo: Hub repository to upload to.
        private: Make a new repository private.
        dry_run: List what would be uploaded in place of uploading it.
        overwrite: Replace an earlier export.
        **options: The other options of ``export``.

    Returns:
        The folder.
    """
    check_destination(output, overwrite=overwrite)
    check_repo(repo)
    if checkpoint is not None:
        run = restore(module, checkpoint, weights=weights)
    run = run or Run()
    if metrics is not None:
        run = replace(run, metrics=[*run.metrics, *read_metrics(metrics)])
    folder = export(module, output, run=run, overwrite=overwrite, name=repo, **options)
    rank_zero_info(f"Exported to {folder}")
    if repo is not None and dry_run:
        print(would_go(folder, repo))
    elif repo is not None:
        rank_zero_info(f"Pushed to {push(folder, repo, private=private)}")
    return folder


ROOT_OF_EXPORT, OUTPUT_OF_EXPORT = "trainer.default_root_dir: ExportAtEnd's", "callbacks.ExportAtEnd.output"
NAME_ANOTHER = "name another folder, or set overwrite to true"
IN_CONFIG = "move or remove that one, or write `overwrite: true` at ExportAtEnd in the config"
OTHER_FOLDER = {
    ROOT_OF_EXPORT: f"give this run another --trainer.default_root_dir (one that goes on with another run: that and "
    f"--resume FOLDER, the root of the other), {IN_CONFIG}",
    OUTPUT_OF_EXPORT: f"name another folder, {IN_CONFIG}",
}
"""What helps where an export is there already, by the option that names its folder."""


def check_destination(output: str | Path, *, overwrite: bool, option: str = "output") -> Path:
    """The absolute path of ``output``, if an export may be written there.

    Args:
        output: The folder.
        overwrite: Whether an earlier export may be replaced.
        option: What the user sets it with, for the message.

    Raises:
        ValueError: It exists and is not to be overwritten, is something else than an export, or cannot be made.
    """
    if not str(output).strip():
        raise ConfigurationError(f"{option} is empty: give a folder")
    path = Path(os.path.abspath(output))
    put_back(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{option} {output} exists already: {OTHER_FOLDER.get(option, NAME_ANOTHER)}")
    ours = any((path / name).is_file() for name in ("model_index.json", "sparsight.json"))
    if path.exists() and not ours and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{option} {output} is no earlier export, so it is not overwritten: name another folder")
    above = next(folder for folder in path.parents if folder.exists())
    try:
        tempfile.TemporaryDirectory(dir=above).cleanup()
    except OSError as error:
        raise ValueError(f"{option} {output} cannot be made: {error.strerror} ({above})") from error
    return path


def base_of(module: Any) -> Base | None:
    """What a module started from, by its hyper-parameters."""
    source = next((module.hparams[name] for name in SOURCES if module.hparams.get(name)), None)
    if source is None:
        return None
    loading = module.hparams.get("loading", module.hparams)  # classes of users may have it flat
    return describe_base(source, revision=loading.get("revision"), variant=loading.get("variant"))


def _licence(given: str | None, base: Base | None) -> dict[str, Any]:
    if given is not None:
        return {"license": given}
    return {} if base is None else dict(base.metadata)
