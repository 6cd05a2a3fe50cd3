"""What guidance makes of a student's error, along the way that its teacher takes to a sample.

    python -m benchmarks.guided_error runs/quickstart/student

At every state that the teacher passes while it samples with guidance, both predict with and without the condition. Told
are root mean squares of the student's error with it, without it, of the guided prediction, and how far the first two
correlate: what they have in common guidance leaves as it is, what they have not it multiplies.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks.emoji_study import captions
from sparsight.common.tables import format_table
from sparsight.diffusion.families.conditioning import concatenate_conditions
from sparsight.diffusion.model.diffusion_model import DiffusionModel, predict
from sparsight.diffusion.model.sampling import guided, sample, starting_noise

SEED = 5  # of noise that no study draws with


@torch.no_grad()
def errors(
    student: DiffusionModel, teacher: DiffusionModel, *, samples: int, steps: int, guidance: float
) -> list[tuple[float, Tensor]]:
    """Mean products of errors at every timestep: (with, without, guided) with themselves, and with times without."""
    shape, index = teacher.sample_shape(), torch.arange(samples)
    batch = {"label": index % 10} if teacher.conditioner.column == "label" else {"caption": captions()[:samples]}
    states: list[tuple[Tensor, Tensor]] = []
    noise = starting_noise(shape, seed=SEED, index=index)
    sample(teacher, batch, noise, steps=steps, guidance=guidance, on_state=lambda *state: states.append(state))
    size = (shape[-2] * teacher.pixels_per_cell, shape[-1] * teacher.pixels_per_cell)
    cond = concatenate_conditions(teacher.condition(batch, size), teacher.unconditional(batch, samples, size))
    found = []
    for state, timestep in states:
        twice = torch.cat([state, state])
        given, wanted = (
            predict(each.denoiser, twice, timestep.expand(len(twice)), cond) for each in (student, teacher)
        )
        with_it, without = (given - wanted).chunk(2)
        both = guided(given - wanted, guidance)
        products = [with_it.square(), without.square(), both.square(), with_it * without]
        found.append((float(timestep), torch.stack([each.mean() for each in products])))
    return found


def row(name: str, products: Tensor) -> dict[str, str]:
    """A line of the table."""
    with_it, without, both, common = products.double()
    return {
        "timestep": name,
        "with condition": f"{with_it.sqrt():.4f}",
        "without": f"{without.sqrt():.4f}",
        "guided": f"{both.sqrt():.4f}",
        "times the first": f"{(both / with_it).sqrt():.2f}",
        "correlation": f"{common / (with_it * without).sqrt():.2f}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="folder of an exported student")
    parser.add_argument("--teacher", default="fashion_mnist_dit", help="of labels 0 to 9, or of the emoji's captions")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.0)
    given = parser.parse_args()
    student, teacher = (DiffusionModel.from_pretrained(name) for name in (given.student, given.teacher))
    for model in (student, teacher):
        model.denoiser.eval()
    found = errors(student, teacher, samples=given.samples, steps=given.steps, guidance=given.guidance)
    rows = [row(f"{timestep:.0f}", products) for timestep, products in found]
    print(format_table([*rows, row("all", torch.stack([products for _, products in found]).mean(0))]))


if __name__ == "__main__":
    main()
