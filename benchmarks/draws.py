"""What drawing timesteps, noise and lost conditions costs a step of the shipped recipes, on the processor.

    OMP_NUM_THREADS=1 python -m benchmarks.draws

Draws are made of (seed, step, sample) by numpy, in a thread, while the batch before is computed. So they cost time
only where the processor has none to spare. Beside their time stands the least that a step can take: on a GPU the
FLOPs of the teacher's pass and of the student's, forward and back, at 790 TFLOP/s, an H200's own measured roof (no
step reaches that, and launches come on top); for the CPU recipe a pass of the teacher alone, timed here. Recipes on
stored trajectories draw no noise and are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch

from sparsight.command.arguments import read_config
from sparsight.common.tables import markdown_table
from sparsight.diffusion.families.known import example_inputs, family_of, published
from sparsight.diffusion.measure.flops import count_flops
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.randomness import Stream, sample_normal, sample_uniform
from sparsight.diffusion.surgery.replace import replace

ROOF = 790e12  # FLOP/s in bf16
ROUNDS = 9
RECIPES = {  # by name of a config: the published model, and sides where they are not its own
    "sd15_paper": ("sd15", None),
    "sdxl_paper": ("sdxl", None),
    "pixart_sigma_paper": ("pixart_sigma", (64, 64)),
    "flux_dev_24gb": ("flux_dev", None),
    "wan_1_3b_24gb": ("wan_1_3b", (9, 60, 104)),
}
CPU_RECIPE, TEACHER = "fashion_mnist", "fashion_mnist_dit"


def seconds_of(call: Callable[[], object]) -> float:
    """Median processor time."""
    found = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def drawn(shape: Sequence[int], batch: int) -> None:
    """What ``DiffusionModule.noised`` draws for a batch."""
    index = torch.arange(batch)
    for stream in (Stream.CONDITION_DROPOUT, Stream.TIMESTEP):
        sample_uniform(seed=0, step=3, index=index, stream=stream)
    sample_normal(shape, seed=0, step=3, index=index, stream=Stream.NOISE)


def on_gpu(recipe: str) -> dict[str, Any]:
    """A row of a recipe for GPUs, each sample of a step."""
    name, sides = RECIPES[recipe]
    config = read_config(f"experiment/{recipe}")
    data, mixer = config["data"]["init_args"], config["model"]["init_args"]["mixer"]
    with torch.device("meta"):
        denoiser = published(name)
        channels, *own = family_of(denoiser).sample_shape(denoiser)
        teacher = count_flops(denoiser, size=sides)
        replace(denoiser, partial(resolve_name(mixer["class_path"]), **mixer["init_args"]))
        student = count_flops(denoiser, size=sides)
    shape = (channels, *(sides or own))
    return row(recipe, shape, data.get("batch_size", 1), least=(teacher + 2 * student) / ROOF)


def on_cpu() -> dict[str, Any]:
    """A row of the recipe for CPUs."""
    batch = read_config(f"shared/{CPU_RECIPE}")["data"]["init_args"]["batch_size"]
    denoiser = DiffusionModel.from_pretrained(TEACHER).denoiser.eval()
    inputs = example_inputs(denoiser, batch=batch)

    @torch.no_grad()
    def run() -> None:
        denoiser(**inputs)

    shape = family_of(denoiser).sample_shape(denoiser)
    return row(CPU_RECIPE, shape, batch, least=seconds_of(run) / batch)


def row(recipe: str, shape: Sequence[int], batch: int, *, least: float) -> dict[str, Any]:
    """Draws beside the least time of a sample's share of a step, in seconds."""
    cost = seconds_of(lambda: drawn(shape, batch)) / batch
    return {
        "recipe": f"`{recipe}`",
        "sample": " x ".join(map(str, shape)),
        "draws, ms a sample": f"{1e3 * cost:.2f}",
        "least step, ms a sample": f"{1e3 * least:.1f}",
        "share": f"{cost / least:.1%}",
    }


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    print(markdown_table([on_cpu(), *map(on_gpu, RECIPES)]))


if __name__ == "__main__":
    main()
