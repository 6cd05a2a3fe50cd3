"""What is measured on drawn samples: which metrics go together, and values as a file, each with its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer

from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text
from sparsight.evaluation.images import FeatureExtractor, GenerationMetric
from sparsight.evaluation.images.set_distance import SetDistance
from sparsight.publish.facts import Metric


def check_numbers(**options: tuple[int | None, int]) -> None:
    """Refuse numbers below the least that is allowed; ``None`` is always.

    Args:
        options: Value and least value by name.

    Raises:
        ValueError: One is below.
    """
    for name, (value, minimum) in options.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} is {value}; allowed: {minimum} or more")


def check_metrics(metrics: Sequence[GenerationMetric], *, samples: int, column: str | None, references: str) -> None:
    """Refuse metrics that cannot be computed on what is drawn.

    Args:
        metrics: What is measured.
        samples: How many samples are drawn.
        column: ``label`` or ``caption``; that of the data if not given.
        references: ``data`` or ``teacher``.

    Raises:
        ValueError: There is none, or one needs something else.
    """
    if not metrics:
        raise ValueError("metrics is empty: name one or more, e.g. sparsight.evaluation.images.TeacherError")
    if column == "label" and any(metric.needs_captions for metric in metrics):
        raise ValueError("labels are drawn, but a metric needs captions: give captions, or leave the metric out")
    logged: set[tuple[str, ...]] = set()
    for metric in metrics:
        name = type(metric).__name__
        if metric.least_samples > samples:
            raise ValueError(f"num_samples is {samples}, fewer than the {metric.least_samples} that {name} needs")
        if not isinstance(metric, SetDistance):
            continue
        file = metric.reference
        if references == "teacher" and file is not None and not file.exists:
            raise ValueError(
                f"references is 'teacher', but {name} has the file {file.file}, which is not there and holds other "
                "images: leave one of them out, or have it made with references: data first"
            )
        known = (name, metric.extractor.name, metric.suffix)
        if known in logged:
            raise ValueError(f"two of {name} on {metric.extractor.name} would have one name: give one of them a suffix")
        logged.add(known)


def share_extractors(metrics: Sequence[GenerationMetric]) -> None:
    """Let metrics with equal extractors use one."""
    known: dict[str, FeatureExtractor] = {}
    for metric in metrics:
        if metric.extractor is not None:
            metric.extractor = known.setdefault(metric.extractor.identity, metric.extractor)


def drawing_protocol(trainer: Trainer, module: Any, samples: int, *, size: int | None, against: str | None) -> str:
    """How samples were drawn that something was measured on.

    Args:
        trainer: Tells the precision.
        module: Draws.
        samples: How many.
        size: Side in pixels at which they were compared; as they were drawn if not given.
        against: What they were compared with, where that is not the data.
    """
    drawn = (
        f"{samples} samples, seed {module.seed}, {module.sample_steps} sampler steps, guidance "
        f"{module.guidance_scale}, precision {trainer.precision}, training step {module.steps_taken}"
    )
    video = len(module.diffusion.sample_shape()) > 3
    drawn += ", the middle frame of each" if video else ""
    compared = "" if size is None else f", compared at {size} px"
    return drawn + compared + ("" if against is None else f", {against} as reference")


def run_folder(trainer: Trainer) -> Path:
    """Where a run keeps what it measures; all processes must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def write_values(trainer: Trainer, stage: str, values: Mapping[str, tuple[float, str]], *, protocol: str) -> None:
    """Write ``metrics/<stage>_step_<step>.json`` in the run's log folder; all processes must call it.

    Args:
        trainer: Of the run.
        stage: ``val`` or ``test``.
        values: By name, each with its metric's own protocol.
        protocol: What all have in common.
    """
    measured = [asdict(Metric(name, value, f"{protocol}; {own}")) for name, (value, own) in values.items()]
    folder = run_folder(trainer) / "metrics"
    if trainer.is_global_zero:
        write_text(folder / f"{stage}_step_{trainer.global_step:07d}.json", json_text(measured))


@runtime_checkable
class Transformed(Protocol):
    """A data set that tells how it makes tensors of images."""

    transforms: Sequence[Any]


def preparation(dataset: Any, compare_size: int | None) -> dict[str, Any]:
    """How reference images are made ready to be compared, as plain data.

    Args:
        dataset: That they come from; none if there are none.
        compare_size: Side in pixels at which images are compared.
    """
    steps: dict[str, Any] = {"compare_size": compare_size or "none"}
    transform = dataset.transforms[0] if isinstance(dataset, Transformed) else None  # validation and test have one
    if is_dataclass(transform) and not isinstance(transform, type):
        steps["transform"] = asdict(transform)
    return steps


def measured_on(samples: int, compare_size: int | None) -> str:
    """The end of a metric's name: at how many pixels, and on how many samples."""
    count = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    size = "" if compare_size is None else f"_{compare_size}px"
    return f"{size}_{count}"
