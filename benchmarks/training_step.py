"""One training step, layer-wise as Sparsight does it, against the usual recipe, in one run.

Layer-wise: one forward pass of the frozen teacher; every mixer regresses its site's output from the teacher's own
input; gradients reach the mixers alone. Usual recipe: two copies of the network; the student runs and is
back-propagated as a whole, with a loss on its output and on every site. Weights outside the mixers are frozen in both.

The layer-wise step cannot be faster than a teacher pass and the mixers' own work, which is the ceiling that is printed
beside the measured ratio: (Tf + Sf + Sb) / (Tf + mixers), all of it measured in the same run, in turn. Optimiser steps
are the same for both and left out. Memory is that of parameters and buffers plus the peak of a step.

On Linux the C library is told to keep freed memory: else it hands large tensors back to the system and gets them again
as pages to be zeroed, which made single parts up to half slower than the same work inside a step.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py --batch_sizes 16 64
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from blocks import DeltaConvBlock
from blocks.base import SiteSamples
from blocks.delta_conv import PRESETS
from lightning_modules import AttentionDistillation
from sparsight.common.disk.files import write_text
from sparsight.common.measure.environment import environment
from sparsight.common.measure.latency import Call, Timing, TooSlow, longest_run, time_in_turn
from sparsight.common.measure.memory import METHOD, held_bytes, peak_bytes
from sparsight.common.tables import format_table, json_text
from sparsight.diffusion.measure.candidates import teacher_and_student
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.pipelines.pixel_pipeline import PixelDiTPipeline
from sparsight.diffusion.surgery.replace import set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.site_error import normalised_mse
from sparsight.diffusion.train.capture import capture_site
from sparsight.diffusion.train.stages import Stage
from sparsight.diffusion.train.trained_parts import TrainedParts

Noised = dict[str, Any]
PARTS = ("usual", "layerwise", "teacher", "student_forward", "student", "mixers")
GOAL_SPEED, GOAL_MEMORY = 0.9, 0.6


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse what was freed instead of returning it to the system."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def save_teacher(folder: str, *, layers: int = 6) -> str:
    """A class-conditional DiT of random weights, 128 wide, 256 tokens: the shipped teacher's but for its depth."""
    denoiser = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=1,
        num_layers=layers,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    PixelDiTPipeline(denoiser, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return folder


def distillation(teacher: str, preset: str, device: torch.device) -> AttentionDistillation:
    """The module whose layer-wise step is measured."""
    options: dict[str, Any] = {"preset": preset}
    stages = [Stage("layerwise", 1)]
    module = AttentionDistillation(
        teacher, partial(DeltaConvBlock, **options), stages, trained=TrainedParts(init_samples=0)
    )
    return module.to(device).train()


def noised_batch(module: AttentionDistillation, batch: int) -> Noised:
    """A random batch as a training step sees it."""
    ids = torch.arange(batch, device=module.device)
    clean = torch.randn(batch, *module.diffusion.sample_shape(), device=module.device)
    labels = torch.zeros_like(ids)
    return module.noised({"sample": clean, "label": labels, "index": ids}, step=0, condition_dropout=0.0)


def layerwise_step(module: AttentionDistillation, noised: Noised) -> None:
    """Sparsight's step without the optimiser."""
    module.distiller.layerwise(noised)["site"].backward()
    module.zero_grad()


class UsualRecipe:
    """Teacher and student as two networks, with the outputs of their sites at hand."""

    def __init__(self, module: AttentionDistillation) -> None:
        self.teacher, self.student = teacher_and_student(module.denoiser)
        self.sites: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
        for name, network in (("teacher", self.teacher), ("student", self.student)):
            for path in module.shells:
                network.get_submodule(path).register_forward_hook(partial(_keep, self.sites[name], path))

    def teacher_forward(self, noised: Noised) -> Tensor:
        """Tf."""
        with torch.no_grad():
            return _predict(self.teacher, noised)

    def student_forward(self, noised: Noised) -> Tensor:
        """Sf, with the graph that a backward pass needs."""
        return _predict(self.student, noised)

    def student_step(self, noised: Noised, wanted: Tensor) -> None:
        """Sf and Sb: loss on output and sites, gradients through the whole student."""
        answer = self.student_forward(noised)
        pairs = [(self.sites["student"][path], value) for path, value in self.sites["teacher"].items()]
        site_loss = torch.stack([normalised_mse(student, teacher) for student, teacher in pairs]).mean()
        (normalised_mse(answer, wanted) + site_loss).backward()
        self.sites["student"].clear()
        self.student.zero_grad()

    def step(self, noised: Noised) -> None:
        """The usual step without the optimiser."""
        self.student_step(noised, self.teacher_forward(noised))


def _keep(outputs: dict[str, Tensor], path: str, module: nn.Module, args: Any, output: Tensor) -> None:
    outputs[path] = output


def _predict(denoiser: nn.Module, noised: Noised) -> Tensor:
    return predict(denoiser, noised["xt"], noised["timestep"], noised["cond"])


def site_samples(module: AttentionDistillation, noised: Noised) -> dict[str, SiteSamples]:
    """What every teacher attention sees and answers on this batch."""
    set_mode(module.shells.values(), Mode.TEACHER)
    samples = {}
    for path, shell in module.shells.items():
        with torch.no_grad(), capture_site(shell) as captured:
            _predict(module.denoiser, noised)
        samples[path] = captured[0]
    return samples


def mixers_step(module: AttentionDistillation, samples: dict[str, SiteSamples]) -> None:
    """The mixers' own work: forward, loss and backward at every site, on inputs that lie ready."""
    for path, shell in module.shells.items():
        normalised_mse(shell.student_pass(samples[path].inputs), samples[path].outputs).backward()
    module.zero_grad()


def measure(module: AttentionDistillation, batch: int, *, runs: int, max_seconds: float) -> dict[str, Any]:
    """Seconds of both steps and of their parts, bytes of both steps, and what follows from them."""
    noised = noised_batch(module, batch)
    samples = site_samples(module, noised)
    usual = UsualRecipe(module)
    wanted = usual.teacher_forward(noised)
    layerwise: Call = partial(layerwise_step, module, noised)
    calls: dict[str, Call] = {
        "usual": partial(usual.step, noised),
        "layerwise": layerwise,
        "teacher": partial(usual.teacher_forward, noised),
        "student_forward": partial(usual.student_forward, noised),
        "student": partial(usual.student_step, noised, wanted),
        "mixers": partial(mixers_step, module, samples),
    }
    outcomes = time_in_turn(calls, device=module.device, runs=runs, max_seconds=max_seconds)
    timings = {name: _timed(name, batch, outcome) for name, outcome in outcomes.items()}
    seconds = {name: timing.median for name, timing in timings.items()}
    for outputs in usual.sites.values():
        outputs.clear()
    memory = {
        "layerwise": held_bytes(module.denoiser) + peak_bytes(layerwise, module.device),
        "usual": held_bytes(usual.teacher, usual.student) + peak_bytes(calls["usual"], module.device),
    }
    ratio = seconds["usual"] / seconds["layerwise"]
    ceiling = (seconds["teacher"] + seconds["student"]) / (seconds["teacher"] + seconds["mixers"])
    return {
        "batch": batch,
        "seconds": seconds,
        "spread": {name: vars(timing) for name, timing in timings.items()},
        "bytes": memory,
        "ratio": ratio,
        "ceiling": ceiling,
        "share_of_ceiling": ratio / ceiling,
        "share_of_memory": memory["layerwise"] / memory["usual"],
    }


def _timed(name: str, batch: int, outcome: Timing | TooSlow) -> Timing:
    if isinstance(outcome, TooSlow):
        enough = math.ceil(2 * outcome.seconds / longest_run(1.0))
        raise SystemExit(
            f"batch {batch}: one run of {name} takes {outcome.seconds:.1f} s; give --max_seconds {enough} or more"
        )
    return outcome


def summary(results: Sequence[dict[str, Any]]) -> str:
    """A line for every batch size."""
    return format_table(
        [
            {
                "batch": str(result["batch"]),
                **{f"{part} ms": f"{1e3 * result['seconds'][part]:.4g}" for part in PARTS},
                "ratio": f"{result['ratio']:.2f}x",
                "ceiling": f"{result['ceiling']:.2f}x",
                "of ceiling": f"{result['share_of_ceiling']:.0%}",
                "MiB layerwise": f"{result['bytes']['layerwise'] / 2**20:.4g}",
                "MiB usual": f"{result['bytes']['usual'] / 2**20:.4g}",
                "of memory": f"{result['share_of_memory']:.0%}",
            }
            for result in results
        ]
    )


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="pixel-space pipeline; a random 6-layer, width-128 DiT if not given")
    parser.add_argument("--preset", default="default", choices=list(PRESETS), help="of the DeltaConvBlock")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--runs", type=int, default=15, help="timed runs of every part, taken in turn")
    parser.add_argument("--max_seconds", type=float, default=15.0, help="for all runs of one part")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/training_step.json"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        module = distillation(options.teacher or save_teacher(folder), options.preset, options.device)
    results = [
        measure(module, batch, runs=options.runs, max_seconds=options.max_seconds) for batch in options.batch_sizes
    ]
    print(summary(results))
    print(f"Goal: at least {GOAL_SPEED:.0%} of the ceiling at no more than {GOAL_MEMORY:.0%} of the memory. {METHOD}")
    around = environment(options.device)
    write_text(options.output, json_text({"environment": around, "preset": options.preset, "results": results}))
    print(f"Written to {options.output}")
    return results


if __name__ == "__main__":
    main()
