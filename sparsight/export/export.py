"""From a trained module to a verified folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from sparsight.common.folders import put_back, whole_folder
from sparsight.diffusion.conditioning import ClassLabels
from sparsight.diffusion.examples import family
from sparsight.diffusion.model import DiffusionModel, learns_variance
from sparsight.diffusion.pixel_pipeline import PIXEL_PIPELINES
from sparsight.export.card import write_card
from sparsight.export.checkpoint import restore
from sparsight.export.delta import write_delta
from sparsight.export.facts import Base, Model, Run, describe_base, read_metrics
from sparsight.export.folder import write_pipeline
from sparsight.export.hub import check_repo, push, would_go
from sparsight.export.standalone import reference_answer, student_state
from sparsight.export.training import check_trained
from sparsight.export.verify import is_exact, verify
from sparsight.lvlm.export import write_lvlm
from sparsight.lvlm.processor import load_processor
from sparsight.lvlm.provenance import FILE as PROVENANCE
from sparsight.lvlm.rehearsal import rehearse_export
from sparsight.surgery.record import record_of
from sparsight.surgery.replace import shells_of, without_idle
from sparsight.surgery.sites import find_sites, meta_twin

SOURCES = ("teacher", "pretrained", "base")  # options of modules that name the model they start from


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
    """Write a pipeline folder, load it in a fresh process, compare, and only then let it appear.

    The folder holds the pipeline, in it the denoiser with its code, ``delta`` (for a distilled student) and a model
    card. ``module`` stays as it is.

    Args:
        module: AttentionDistillation, DenoiserTraining or SparseLayerTuning.
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
        RuntimeError: The folder does not load, or its answers differ; nothing is left at ``output``.
    """
    write = _writer_of(module)
    destination = check_destination(output, overwrite=overwrite)
    run = run or Run()
    lacking = check_trained(module, told=run.steps, untrained=untrained)
    if run.steps is None or lacking is not None:
        run = replace(run, steps=module.steps_taken if lacking is None else 0)
    base = base_of(module)
    with whole_folder(destination) as partial:
        write(
            module,
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
        ConfigurationError: The export of a trained image-text model would fail.
        ValueError: The module has nothing that can be exported.
    """
    if _writer_of(module) is _write_lvlm:
        rehearse_export(module, processor or load_processor(module.base, **module.source))


def _writer_of(module: Any) -> Callable[..., None]:
    """What writes a module's folder, and verifies it.

    Raises:
        ValueError: The module has nothing that can be exported.
    """
    if isinstance(getattr(module, "diffusion", None), DiffusionModel):
        return _write_pipeline
    if isinstance(getattr(module, "model", None), PreTrainedModel) and hasattr(module, "trained_so_far"):
        return _write_lvlm
    raise ValueError(
        f"{type(module).__name__} has neither a diffusion nor an image-text model to export that it trains"
    )


def _write_pipeline(
    module: Any,
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
    with without_idle(module.diffusion.denoiser):
        write_pipeline(module.diffusion, folder, fp16=fp16)
        if base is not None and shells_of(module.denoiser):
            _write_delta(module, base, folder / "delta")
        reloaded = _verified(module.diffusion, folder)
        facts = replace(_describe(module.diffusion, folder, name, reloaded, licence), untrained=lacking)
    write_card(folder, model=facts, run=run, base=base)


def _write_lvlm(module: Any, folder: Path, name: str, *, fp16: bool, **facts: Any) -> None:
    write_lvlm(module, folder, name, **facts)


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
        metrics: File of :func:`sparsight.export.facts.read_metrics`.
        repo: Hub repository to upload to.
        private: Make a new repository private.
        dry_run: List what would be uploaded in place of uploading it.
        overwrite: Replace an earlier export.
        **options: The other options of :func:`export`.

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


def check_destination(output: str | Path, *, overwrite: bool, option: str = "output") -> Path:
    """The absolute path of ``output``, if an export may be written there.

    Args:
        output: The folder.
        overwrite: Whether an earlier export may be replaced.
        option: What the user sets it with, for the message.

    Raises:
        ValueError: It exists and is not to be overwritten, is something else than an export, or cannot be made.
    """
    path = Path(os.path.abspath(output))
    put_back(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{option} {output} exists already: name another folder, or set overwrite to true")
    ours = any((path / name).is_file() for name in ("model_index.json", PROVENANCE))
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
    return describe_base(source, revision=module.hparams.get("revision"), variant=module.hparams.get("variant"))


def _write_delta(module: Any, base: Base, folder: Path) -> None:
    write_delta(
        module.denoiser,
        folder,
        teacher=base.name,
        revision=base.revision,
        variant=base.variant,
        teacher_hash=module.teacher_hash,
    )


def _verified(model: DiffusionModel, folder: Path) -> dict[str, float]:
    inputs, expected = reference_answer(model.denoiser)
    sites = record_of(model.denoiser)["sites"].values()
    return verify(
        folder,
        model.component,
        inputs,
        expected,
        exact=is_exact(model.denoiser),
        has_code=bool(sites),
        mixers=[entry["class_path"] for entry in sites],
    )


def _licence(given: str | None, base: Base | None) -> dict[str, Any]:
    if given is not None:
        return {"license": given}
    return {} if base is None else dict(base.metadata)


def _describe(
    model: DiffusionModel, folder: Path, name: str, reloaded: dict[str, float], licence: dict[str, Any]
) -> Model:
    twin = meta_twin(model.denoiser)
    return Model(
        name=name,
        denoiser=family(model.denoiser),
        part=model.component,
        size=model.sample_shape()[1:],
        class_conditional=isinstance(model.conditioner, ClassLabels),
        licence=licence,
        sites=record_of(model.denoiser)["sites"],
        all_sites=len(find_sites(twin)),
        parameters=(_count(twin.state_dict()), _count(student_state(model.denoiser))),
        pipeline_code=type(model.pipeline).__name__ in PIXEL_PIPELINES,
        fp16="fp16" in reloaded,
        delta=(folder / "delta").is_dir(),
        reloaded=reloaded,
        learned_variance=learns_variance(model.denoiser),
    )


def _count(state: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in state.values())
