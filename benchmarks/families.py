"""Tries every family of denoisers at a tiny size, from finding its sites to drawing with an export.

    python -m benchmarks.families               the table of docs/recipes.md; exits with 1 where something fails
    python -m benchmarks.families --families FLUX.1 Wan

Weights are random, classes and pipelines are diffusers' own. Two captions or labels, latents that are not square where
the family takes them, processor alone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.family_cases import CASES, GUIDANCE, STEPS, Case
from blocks import NeighborhoodAttention, SoftmaxAttention
from sparsight.common.disk.cache_options import CacheCompute, CacheOptions
from sparsight.common.tables import markdown_table
from sparsight.diffusion.families.known import example_inputs, family_of
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.surgery.replace import finalize, replace, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import find_sites, probe_grids
from sparsight.publish.fresh_process import EXACT, relative_l2

CLOSE = 1e-5
NEAR = partial(NeighborhoodAttention, kernel_size=3)


class Failed(Exception):
    """A check that does not hold; its text stands in the table."""


def run(denoiser: nn.Module, size: Sequence[int]) -> Tensor:
    """What a denoiser returns for fixed random inputs of two samples."""
    torch.manual_seed(1)
    output: Tensor = denoiser(**example_inputs(denoiser, batch=2, size=tuple(size)), return_dict=False)[0]
    return output


def student(case: Case, mixer: Any, **options: Any) -> Any:
    """A denoiser whose students compute."""
    denoiser = case.made()
    torch.manual_seed(2)
    set_mode(replace(denoiser, mixer, **options).values(), Mode.STUDENT)
    return denoiser


def _held(value: float, most: float) -> str:
    if not value <= most:  # catches nan as well
        raise Failed(f"{value:.1e}, allowed {most:.0e}")
    return f"{value:.1e}"


@torch.no_grad()
def exact_limit(case: Case) -> str:
    """Relative error of softmax attention led through a site, over two sizes."""
    pairs = [(run(student(case, SoftmaxAttention), size), run(case.made(), size)) for size in case.sizes[:2]]
    return _held(max(relative_l2(found, wanted) for found, wanted in pairs), CLOSE)


@torch.no_grad()
def window(case: Case) -> str:
    """Relative error of a window of 3 tokens a side, against the family's own attention with a mask."""
    worst, changed = 0.0, 0.0
    for size in case.sizes[:2]:
        denoiser = student(case, NEAR)
        with _masked(denoiser, size):
            wanted = run(case.made(), size)
        found = run(denoiser, size)
        worst, changed = max(worst, relative_l2(found, wanted)), relative_l2(wanted, run(case.made(), size))
    if not changed > 0:
        raise Failed("the window changes nothing")
    return _held(worst, CLOSE)


@contextlib.contextmanager
def _masked(denoiser: nn.Module, size: Sequence[int]) -> Iterator[None]:
    """Self-attention whose image tokens see each other's windows alone; text sees all, and all see it."""
    grids = set(probe_grids(denoiser, tuple(size)).values())
    mixer = next(iter(shells_of(denoiser).values())).mixer
    masks = {grid.tokens: mixer.mask(grid) for grid in grids}
    text = next(iter(family_of(denoiser).text.values()), None)

    class Masked(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if function is F.scaled_dot_product_attention:
                names = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
                tokens = names["query"].shape[2]
                if names["key"].shape[2] == tokens and (tokens in masks or text is not None):
                    kwargs, args = names | {"attn_mask": _whole(masks, tokens, text)}, ()
            return function(*args, **kwargs)

    with Masked():
        yield


def _whole(masks: Mapping[int, Tensor], tokens: int, text: str | None) -> Tensor:
    if tokens in masks:
        return masks[tokens]
    (own,) = masks.values()
    seen, first = torch.ones(tokens, tokens, dtype=torch.bool), tokens - len(own) if text == "before" else 0
    seen[first : first + len(own), first : first + len(own)] = own
    return seen


def _plan(case: Case) -> list[PlanEntry]:
    """A feature mixer at the first site, windows at all others."""
    return [PlanEntry(find_sites(case.made())[0].path, case.feature), PlanEntry("*", NEAR)]


def gradients(case: Case) -> str:
    """Trained tensors, all of which get a gradient that is finite and not zero in both stages."""
    denoiser = student(case, _plan(case), train_projections=True)
    shells = shells_of(denoiser)
    trained = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # copies that are the teacher's yet make no error, and so no gradient
            parameter += 0.01 * torch.randn_like(parameter)
    for mode in (Mode.LAYERWISE, Mode.STUDENT):
        set_mode(shells.values(), mode)
        if mode is Mode.LAYERWISE:
            with torch.no_grad():
                run(denoiser, case.sizes[0])
            loss = torch.stack([shell.take_squares()[0] for shell in shells.values()]).sum()
        else:
            loss = run(denoiser, case.sizes[0]).square().mean()
        loss.backward()
        dead = [name for name, p in trained.items() if p.grad is None or not (p.grad.isfinite().all() and p.grad.any())]
        if dead:
            raise Failed(f"{dead[0]} ({mode.name.lower()})")
        denoiser.zero_grad()
    return f"all {len(trained)}"


def stages(case: Case, folder: Path, module: Any) -> str:
    """Validation error of the output after two steps of each stage, on the teacher's own samples."""
    from lightning.pytorch import Trainer

    from datamodules import TeacherSamplesDataModule, TeacherSampling

    options = {
        "count": 4,
        "val_count": 2,
        "sampling": TeacherSampling(steps=2, size=case.sizes[0]),
        "batch_size": 2,
        "compute": CacheCompute(device="cpu"),
        "cache": CacheOptions(str(folder / "cache")),
    }
    captions = {"captions": case.conditions["caption"]} if "caption" in case.conditions else {}
    data: Any = partial(TeacherSamplesDataModule, str(folder / "teacher"), mode="samples")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = Trainer(default_root_dir=folder, max_epochs=-1, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, data(**options, **captions))
    error = float(trainer.callback_metrics["val/output_relative_l2"])
    still = [name for name in module.trained_names() if torch.equal(before[name], module.state_dict()[name])]
    if still or trainer.global_step != 4:
        raise Failed(f"{still[0]} did not move" if still else f"{trainer.global_step} of 4 steps")
    return _held(error, 10.0)


def reload(module: Any, folder: Path) -> str:
    """Relative error of an export, loaded by plain diffusers in a process without this project."""
    from sparsight.diffusion.export.folder import write_pipeline
    from sparsight.diffusion.export.standalone import reference_output
    from sparsight.diffusion.export.verify import verify

    write_pipeline(module.diffusion, folder, fp16=False)
    inputs, expected = reference_output(module.denoiser)
    part = module.diffusion.component
    try:
        errors = verify(folder, part, inputs, expected, exact=True, has_code=True, mixers=[])
    except RuntimeError as error:
        raise Failed(str(error).splitlines()[-1]) from error
    return _held(max(errors.values()), EXACT)


def pipeline(case: Case, folder: Path) -> str:
    """Largest difference to what diffusers' own pipeline draws, with guidance."""
    from diffusers import DiffusionPipeline

    from sparsight.diffusion.model.diffusion_model import DiffusionModel
    from sparsight.diffusion.model.sampling import sample, starting_noise

    model = DiffusionModel.from_pretrained(str(folder))
    model.size = case.sizes[0]
    noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(2))
    found = sample(model, case.conditions, noise, steps=STEPS, guidance=GUIDANCE)
    stock = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    wanted = case.drawn(stock, noise)
    return _held(float(((model.decode(found) if case.decoded else found) - wanted).abs().max()), CLOSE)


@torch.no_grad()
def graphs(case: Case) -> str:
    """Graphs of the blocks over all sizes, of the student and of the base; one more for each kind of block at most."""
    made = student(case, NEAR)
    finalize(made)
    kinds = {type(m).__name__ for m in made.modules() if type(m).__name__ in family_of(made).blocks}
    counts = [_graphs(denoiser, case) for denoiser in (made, case.made())]
    if counts[0] > counts[1] + len(kinds):
        raise Failed(f"{counts[0]}, base {counts[1]}")
    return f"{counts[0]}, base {counts[1]}"


def _graphs(denoiser: Any, case: Case) -> int:
    counted: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        counted.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    wanted = [run(denoiser, size) for size in case.sizes]
    torch._dynamo.reset()
    for block in [m for m in denoiser.modules() if type(m).__name__ in family_of(denoiser).blocks]:
        block.compile(fullgraph=True, backend=backend)
    for size, expected in zip(case.sizes, wanted, strict=True):
        if relative_l2(run(denoiser, size), expected) > 10 * CLOSE:
            raise Failed("compiled, it returns something else")
    torch._dynamo.reset()
    return len(counted)


def distillation(case: Case, teacher: Path) -> Any:
    """A module that distils the saved pipeline."""
    from lightning_modules import AttentionDistillation
    from sparsight.diffusion.train.stages import LossTerms, Stage
    from sparsight.diffusion.train.trained_parts import TrainedParts

    terms = LossTerms(site_on="residual")
    plan = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, loss=terms, warmup_steps=1)]
    torch.manual_seed(0)
    return AttentionDistillation(
        str(teacher),
        stages=plan,
        plan=_plan(case),
        trained=TrainedParts(projections=True, init_samples=2),
        sampling=Sampling(2, size=tuple(case.sizes[0])),
    )


def row(case: Case, folder: Path) -> tuple[dict[str, str], bool]:
    """The row of a family, and whether all of it holds."""
    teacher = case.save(folder / "teacher")
    module = distillation(case, teacher)
    checks: dict[str, Callable[[], str]] = {
        "sites": lambda: str(len(find_sites(case.made()))),
        "exact limit": lambda: exact_limit(case),
        "window": lambda: window(case),
        "gradients": lambda: gradients(case),
        "both stages": lambda: stages(case, folder, module),
        "export, reloaded": lambda: reload(module, folder / "student"),
        "pipeline": lambda: pipeline(case, teacher),
        "graphs": lambda: graphs(case),
    }
    found, holds = {"family": case.name}, True
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:  # whatever a family raises is a row that fails, and the others go on
            told = str(error).strip().splitlines() or [""]
            found[name], holds = f"FAILS: {type(error).__name__} {told[0]}".replace("Failed ", ""), False
    return found, holds


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Progress bars and what trainers print are left out of the table."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a family fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--families", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    wanted = parser.parse_args(arguments).families
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for case in (case for case in CASES if case.name in wanted):
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder, _silence():
            rows.append(row(case, Path(folder)))
    print(markdown_table([found for found, _ in rows]))
    return 0 if all(holds for _, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
