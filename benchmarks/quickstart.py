"""The main job from start to end: distil the shipped teacher, measure the student, draw both, export it.

    make quickstart

Needs no data set, no network and no GPU. About 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from sparsight.command.cli import main as sparsight
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.tables import format_table, json_text, short
from sparsight.diffusion.measure.benchmark import Settings, benchmark_sites
from sparsight.diffusion.measure.report import replacement_report
from sparsight.diffusion.measure.rows import table
from sparsight.diffusion.surgery.record import mixer_from, record_of
from sparsight.evaluation.images import EfficientNetLite0Features, KernelDistance, Samples, TeacherError, in_batches
from sparsight.report.page import write_page
from sparsight.report.read import read_run

CLASSES = 10
REFERENCE_SEED = 1  # the teacher's other samples, which all three are compared with


@contextmanager
def untrained(module: Any) -> Iterator[None]:
    """The module with fresh mixers in the place of the trained ones."""
    entries = record_of(module.denoiser)["sites"]
    trained = {path: copy.deepcopy(shell.mixer.state_dict()) for path, shell in module.shells.items()}
    torch.manual_seed(0)
    for path, shell in module.shells.items():
        shell.mixer.load_state_dict(mixer_from(entries[path]).state_dict())
    yield
    for path, shell in module.shells.items():
        shell.mixer.load_state_dict(trained[path])


def draw_all(module: Any, count: int) -> dict[str, Tensor]:
    """Images of every candidate from the same seeds, and the teacher's from others, (count, 1, 32, 32) in [0, 1]."""
    index = torch.arange(count)
    labels = {"label": index % CLASSES}
    images = {"teacher": module.draw_teacher(labels, index)}
    with untrained(module):
        images["untrained student"] = module.draw(labels, index)
    images["student"] = module.draw(labels, index)
    module.seed = REFERENCE_SEED
    images["reference"] = module.draw_teacher(labels, index)
    return images


def quality(images: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Same-seed distance to the teacher and small-sample KID against the teacher's other samples."""
    count = len(images["teacher"])
    kid = KernelDistance(EfficientNetLite0Features(), subset_size=count // 2)
    kid.with_reference(in_batches(images["reference"]))
    rows = []
    for name in ("teacher", "untrained student", "student"):
        pairs = Samples(images[name], torch.arange(count), teacher_images=images["teacher"])
        distance = TeacherError("pixels").of([pairs])["fidelity_pixel_rmse"]
        mean, deviation = kid.of(in_batches(images[name])).values()
        rows.append({"name": name, "distance": distance, "kid": mean, "kid_std": deviation})
    return rows


def side_by_side(images: dict[str, Tensor], path: Path) -> None:
    """Teacher, untrained student and student below each other, one column a class."""
    names = ("teacher", "untrained student", "student")
    figure, axes = plt.subplots(len(names), 1, figsize=(9, 3.2))
    for axis, name in zip(axes, names, strict=True):
        row = torch.cat(list(images[name][:CLASSES, 0]), dim=1)
        axis.imshow(row, cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle("Same seeds, same classes, same sampler", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def summary(module: Any, rows: list[dict[str, Any]], count: int) -> str:
    """The closing table."""
    report = replacement_report(module.denoiser)
    site = report.sites[0]
    lines = []
    for row in rows:
        before = row["name"] == "teacher"
        lines.append(
            {
                "": row["name"],
                "parameters": short(report.parameters_before if before else report.parameters_after),
                "FLOPs per site": short(site.flops_before if before else site.flops_after),
                "FLOPs whole": short(report.flops_before if before else report.flops_after),
                "distance to teacher": f"{row['distance']:.4f}",
                "KID x 1000": f"{1000 * row['kid']:.2f} +- {1000 * row['kid_std']:.2f}",
            }
        )
    return (
        format_table(lines)
        + f"\nDistance: root mean square of pixels in [0, 1], same seeds, {count} images. KID: EfficientNet-Lite0 "
        f"features at 112 px, {count} images against {count} others of the teacher: a small sample, fit for comparing "
        "these rows only."
    )


def as_metrics(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Quality as metrics with their protocols, for the run's page."""
    found = []
    for row in rows[1:]:  # the teacher is what they are compared with
        images = f"{count} images, one seed"
        distance = {"name": f"{row['name']}: distance to the teacher", "value": row["distance"]}
        found.append(distance | {"protocol": f"root mean square of pixels in [0, 1], same seeds; {images}"})
        spread = f"+- {1000 * row['kid_std']:.0f} over subsets"
        kernel = {"name": f"{row['name']}: KID x 1000", "value": 1000 * row["kid"]}
        found.append(kernel | {"protocol": f"{spread}; EfficientNet-Lite0 at 112 px; {images}"})
    return found


def main() -> None:
    """Run everything and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiment/quickstart")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="as in the config")
    parser.add_argument("--samples", type=int, default=100, help="images of each candidate")
    parser.add_argument("overrides", nargs="*", help="further options of `sparsight fit`, after --")
    arguments = parser.parse_args()
    start = time.perf_counter()
    cli = sparsight(["fit", "--config", arguments.config, *arguments.overrides])
    module = cli.model.eval()
    trained = time.perf_counter()
    print(f"\nDistilled and exported in {trained - start:.0f} s. Measuring ...", flush=True)

    images = draw_all(module, arguments.samples)
    rows = quality(images)
    side_by_side(images, arguments.output / "side_by_side.png")
    latencies = list(benchmark_sites(module.denoiser, Settings(backward=False, runs=5, max_seconds=8.0), module.device))
    text = "\n\n".join(
        [summary(module, rows, arguments.samples), "One site, mixer against attention:", table(latencies)]
    )
    (arguments.output / "table.txt").write_text(text + "\n")
    result = {
        "environment": environment(module.device),
        "seconds": {"distillation": trained - start, "measuring": time.perf_counter() - trained},
        "samples": arguments.samples,
        "quality": rows,
        "latency": [row.flat() for row in latencies],
    }
    (arguments.output / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    print("\n" + text)
    log = Path(cli.trainer.log_dir)
    write_text(log / "metrics" / "quickstart.json", json_text(as_metrics(rows, arguments.samples)))
    page = write_page([read_run(log, name="quickstart")], arguments.output / "report.html")
    student = arguments.output / "student"
    print(
        f"""
Done in {time.perf_counter() - start:.0f} s. Here it is:
  {arguments.output / "side_by_side.png"}   teacher and student from the same seeds
  {arguments.output / "table.txt"}, results.json   the figures above
  {page}   the run as a page, to open in a browser: figures, samples, curves, errors of sites
  {student}   the exported student; its README.md says how to load it with diffusers alone

Next:
  look at   tensorboard --logdir {arguments.output}
  your own model    sparsight fit --config experiment/sd15_24gb --model.teacher YOURS
                    where YOURS is a diffusers pipeline, a folder or a hub id; sdxl_24gb and pixart_sigma_24gb for
                    those, and experiment/quickstart for a DiT with class labels
  your own block    docs/your_own_block.md"""
    )


if __name__ == "__main__":
    main()
