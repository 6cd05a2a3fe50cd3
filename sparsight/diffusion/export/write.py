"""From a trained diffusion module to a pipeline folder that was loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsight.common.disk.files import write_text
from sparsight.diffusion.export.card import Model, write_card
from sparsight.diffusion.export.delta import write_delta
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.export.standalone import reference_output, student_state
from sparsight.diffusion.export.verify import is_exact, verify
from sparsight.diffusion.families.conditioning import ClassLabels
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel, learns_variance
from sparsight.diffusion.surgery.core_site import CoreSite
from sparsight.diffusion.surgery.record import plan_config, record_of
from sparsight.diffusion.surgery.replace import shells_of, without_idle
from sparsight.diffusion.surgery.rest.rest import changed_in_rest
from sparsight.diffusion.surgery.sites import find_sites, meta_twin, students
from sparsight.publish.facts import Base, Run

PLAN = "plan.yaml"  # a config that asks for the mixers of this student


def write_diffusion(
    module: Any,
    folder: Path,
    name: str,
    *,
    run: Run,
    base: Base | None,
    lacking: str | None,
    licence: dict[str, Any],
    fp16: bool,
) -> None:
    """Write the pipeline, its delta and its card; load it in a fresh process and compare.

    Args:
        module: An AttentionDistillation or DenoiserTraining; stays as it is.
        folder: Made if it is not there.
        name: How the card says that the folder is loaded.
        run: What the card tells about the training.
        base: What is known of the base model; none if there is none.
        lacking: What should have been trained and was not, for the card.
        licence: Licence entries of the card.
        fp16: Write half-precision weights as well.

    Raises:
        ValueError: A mixer cannot travel, or no site was handed over to its mixer yet.
        RuntimeError: The folder does not load, or its outputs differ.
    """
    with without_idle(module.diffusion.denoiser), module.whole_base():
        write_pipeline(module.diffusion, folder, fp16=fp16)
        record = record_of(module.denoiser)
        if record["sites"]:
            write_text(folder / PLAN, plan_config(record))
        if base is not None and shells_of(module.denoiser):
            _write_delta(module, base, folder / "delta")
        reloaded = _verified(module.diffusion, folder)
        facts = _describe(module.diffusion, folder, name, reloaded, licence)
        facts = replace(facts, untrained=lacking, quantised=module.quantised)
    write_card(folder, model=facts, run=run, base=base)


def _write_delta(module: Any, base: Base, folder: Path) -> None:
    write_delta(
        module.denoiser,
        folder,
        teacher=base.name,
        revision=base.revision,
        variant=base.variant,
        teacher_hash=module.teacher_hash,
        quantised=module.quantised,
    )


def _verified(model: DiffusionModel, folder: Path) -> dict[str, float]:
    inputs, expected = reference_output(model.denoiser)
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


def _describe(
    model: DiffusionModel, folder: Path, name: str, reloaded: dict[str, float], licence: dict[str, Any]
) -> Model:

    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline

    twin = meta_twin(model.denoiser)
    return Model(
        name=name,
        denoiser=family_of(model.denoiser).name,
        part=model.component,
        size=model.sample_shape()[1:],
        checked=family_of(model.denoiser).check_size(model.denoiser),
        class_conditional=isinstance(model.conditioner, ClassLabels),
        example_call=family_of(model.denoiser).example_call(model.pipeline),
        licence=licence,
        sites=record_of(model.denoiser)["sites"],
        all_sites=len(find_sites(twin)),
        parameters=(_count(twin.state_dict()), _count(student_state(model.denoiser))),
        pipeline_code=isinstance(model.pipeline, PixelPipeline),
        fp16="fp16" in reloaded,
        delta=(folder / "delta").is_dir(),
        reloaded=reloaded,
        cores=[path for path, student in students(model.denoiser).items() if isinstance(student, CoreSite)],
        rest=changed_in_rest(model.denoiser),
        learned_variance=learns_variance(model.denoiser),
    )


def _count(state: dict[str, Any]) -> int:
    return sum(tensor.numel() for tensor in state.values())
