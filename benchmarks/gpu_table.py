"""Attention against its replacements at the shapes of Stable Diffusion 1.5, XL and PixArt-Sigma, on one GPU in one run.

Measures every distinct self-attention layer, the depthwise stages of DeltaConvBlock alone, and whole denoisers, eager
and compiled, beside the roofs of the device. docs/gpu.md explains the columns. Results are kept as they come: the same
command goes on where an earlier one stopped.

    python -m benchmarks.gpu_table --output runs/gpu_table
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import MODELS, Case, Model, Workshop
from benchmarks.gpu_report import write_report
from blocks import Grid, Site
from sparsight.common.disk.journal import Journal
from sparsight.common.measure.contest import Contest, Measured
from sparsight.common.measure.environment import environment
from sparsight.common.measure.memory import is_out_of_memory
from sparsight.common.measure.roofline import least_work, measure_roofs
from sparsight.diffusion.measure.benchmark import DTYPES
from sparsight.diffusion.measure.candidates import passes
from sparsight.diffusion.measure.verify import TOLERANCES
from sparsight.testing import relative_l2

LEVELS, MODES = ("layer", "depthwise", "denoiser"), ("eager", "compiled")
BOTH = "forward+backward"
# what matters most comes first, since time may run out
PHASES = (
    ("layer", "eager", "forward"),
    ("depthwise", "eager", "forward"),
    ("denoiser", "eager", "forward"),
    ("layer", "eager", BOTH),
    ("layer", "compiled", "forward"),
    ("depthwise", "compiled", "forward"),
    ("denoiser", "compiled", "forward"),
    ("depthwise", "eager", BOTH),
    ("layer", "compiled", BOTH),
)
ROOFS = "roofs"


@dataclass(frozen=True)
class Piece:
    """Candidates that are measured together, in turn.

    Attributes:
        level: One of ``LEVELS``.
        mode: One of ``MODES``.
        direction: ``forward`` or ``forward+backward``.
        model: Name of the model.
        pixels: Side of the image.
        kind: Which of the model's kinds of sites.
    """

    level: str
    mode: str
    direction: str
    model: str
    pixels: int
    kind: int

    @property
    def key(self) -> str:
        """Name in the journal."""
        return " ".join(map(str, vars(self).values()))


class Bench:
    """Measures one piece after another."""

    def __init__(self, models: Mapping[str, Model], options: argparse.Namespace) -> None:
        self.options = options
        self.device, self.dtype = options.device, DTYPES[options.dtype]
        settings: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "batch": options.batch}
        self.workshops = {name: Workshop(models[name], **settings) for name in options.models}
        self._contests: dict[tuple[object, ...], Contest] = {}
        self._denoisers: tuple[tuple[str, str], dict[str, Any]] = (("", ""), {})

    def pieces(self) -> Iterator[Piece]:
        """All that the options ask for, in the order of ``PHASES``, small images first."""
        options = self.options
        for level, mode, direction in PHASES:
            if level not in options.levels or mode not in options.modes:
                continue
            for name, workshop in self.workshops.items():
                for kind in range(1 if level == "denoiser" else len(workshop.kinds)):
                    for pixels in sorted(options.sizes):
                        if direction == "forward" or pixels in options.train_sizes:
                            yield Piece(level, mode, direction, name, pixels, kind)

    def measure(self, piece: Piece) -> list[dict[str, Any]]:
        """Rows of a piece, one for each candidate."""
        workshop = self.workshops[piece.model]
        sites = workshop.kinds[piece.kind]
        grid = workshop.grids(piece.pixels)[sites[0].path]
        whole = piece.level == "denoiser"
        if self._denoisers[0] != (piece.model, piece.mode):
            self._denoisers = (("", ""), {})  # gives their memory back
        if whole and not self._denoisers[1]:
            self._denoisers = ((piece.model, piece.mode), workshop.denoisers())
        cases = {
            "layer": lambda: workshop.layer_cases(sites, grid),
            "depthwise": lambda: workshop.depthwise_cases(sites, grid),
            "denoiser": lambda: workshop.denoiser_cases(self._denoisers[1], piece.pixels),
        }[piece.level]()
        refusals = {case.name: case.refusal or self._prepare(case, piece) for case in cases}
        calls = {
            case.name: refusals[case.name] or passes(case.call, (*case.inputs, *case.weights))[piece.direction]
            for case in cases
        }
        measured = self._contest(piece).measure(grid.tokens, calls)
        return [self._row(piece, case, measured[case.name], None if whole else sites, grid) for case in cases]

    def _prepare(self, case: Case, piece: Piece) -> str:
        """Compile where that is asked for, and answer why the compiled form must not be timed."""
        if piece.mode == "eager":
            return ""
        try:
            with torch.set_grad_enabled(piece.direction == BOTH):
                expected = case.call().detach() if piece.level != "denoiser" else None
                for module in case.compiled:
                    module.compile(backend=self.options.backend, dynamic=False)
                answer = case.call().detach()
        except Exception as error:  # of any part of the compiler
            return f"does not compile: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if expected is not None and relative_l2(answer, expected) > TOLERANCES[self.dtype]:
            return f"compiled, it differs from eager by {relative_l2(answer, expected):.1e} (relative L2)"
        return ""

    def _contest(self, piece: Piece) -> Contest:
        """One for all sizes, so that it learns from the smaller ones what the larger ones need."""
        options, key = self.options, (piece.level, piece.mode, piece.direction, piece.model, piece.kind)
        seconds = options.denoiser_seconds if piece.level == "denoiser" else options.layer_seconds
        return self._contests.setdefault(key, Contest(self.device, options.runs, seconds, cold_start=True))

    def _row(
        self, piece: Piece, case: Case, measured: Measured, sites: Sequence[Site] | None, grid: Grid
    ) -> dict[str, Any]:
        work = least_work(
            inputs=sum(tensor.numel() for tensor in case.inputs),
            weights=sum(tensor.numel() for tensor in case.weights),
            outputs=case.outputs,
            flops=case.flops,
            itemsize=self.dtype.itemsize,
            backward=piece.direction == BOTH,
        )
        timing = measured.timing
        return {
            **asdict(piece),
            "site": sites[0].path if sites else "",
            "layers": len(sites) if sites else 1,
            "channels": sites[0].channels if sites else None,
            "heads": sites[0].heads if sites else None,
            "tokens": grid.tokens,
            "candidate": case.candidate,
            "part": case.part,
            "seconds": timing and timing.median,
            "seconds_p10": timing and timing.p10,
            "seconds_p90": timing and timing.p90,
            "runs": timing and timing.runs,
            "peak_bytes": measured.peak,
            "weight_bytes": sum(tensor.nbytes for tensor in case.weights),
            "least_bytes": work.bytes,
            "least_flops": work.flops,
            "verified": case.verified,
            "skipped": measured.skipped,
        }


def run(bench: Bench, journal: Journal, *, deadline: float) -> list[str]:
    """Measure what the journal lacks until the deadline; answer with what went wrong or is left."""
    failures, left = [], 0
    for piece in bench.pieces():
        if piece.key in journal.results:
            continue
        if time.monotonic() > deadline:
            left += 1
            continue
        begin = time.monotonic()
        torch.compiler.reset()
        try:
            rows = bench.measure(piece)
        except RuntimeError as error:  # one shape's trouble must not cost the others
            reason = "out of memory" if is_out_of_memory(error) else str(error).splitlines()[0]
            failures.append(f"{piece.key}: {reason}")
            print(f"failed {failures[-1]}", flush=True)
            continue
        journal.add(piece.key, rows)
        print(f"measured {piece.key}: {len(rows)} rows in {time.monotonic() - begin:.1f} s", flush=True)
    return failures + ([f"{left} pieces are left: give the same command again to go on"] if left else [])


def raise_roofs(journal: Journal, bench: Bench) -> None:
    """Measure the roofs and keep the highest seen: whatever else the device does can only lower them."""
    measured, known = asdict(measure_roofs(bench.device, bench.dtype)), journal.results.get(ROOFS, {})
    journal.add(ROOFS, {name: max(rate, known.get(name, 0.0)) for name, rate in measured.items()})


def parse(models: Mapping[str, Model], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_table"))
    parser.add_argument("--models", nargs="+", default=list(models), choices=list(models))
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="image sides in pixels")
    parser.add_argument("--train_sizes", type=int, nargs="+", default=[512, 1024], help="sizes with a backward pass")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--dtype", default="bfloat16", choices=list(DTYPES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--runs", type=int, default=50, help="timed runs of every candidate, taken in turn")
    parser.add_argument("--layer_seconds", type=float, default=4.0, help="for all runs of one layer")
    parser.add_argument("--denoiser_seconds", type=float, default=16.0, help="for all runs of one denoiser")
    parser.add_argument("--minutes", type=float, default=25.0, help="no new piece of work is begun after that time")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "there is no CUDA device here; for a dry run: --device cpu --sizes 64 --models sd15 --levels layer"
        )
    if bad := [size for size in options.sizes if size < 64 or size % 64]:
        parser.error(f"sizes are multiples of 64 pixels, which all levels of the denoisers can halve; got {bad}")
    return options


def main(arguments: Sequence[str] | None = None, models: Mapping[str, Model] = MODELS) -> list[dict[str, Any]]:
    """Measure, print and write; the rows of this and of earlier runs into the same folder."""
    options = parse(models, arguments)
    deadline = time.monotonic() + 60 * options.minutes
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the best of the library's kernels
    torch._dynamo.config.recompile_limit = 64  # one for every kind of block of a denoiser
    kept = ("backend", "dtype", "batch", "runs", "layer_seconds", "denoiser_seconds")
    about = environment(options.device) | {name: getattr(options, name) for name in kept}
    journal = Journal(options.output / "rows.jsonl", about)
    bench = Bench(models, options)
    raise_roofs(journal, bench)
    unfinished = run(bench, journal, deadline=deadline)
    raise_roofs(journal, bench)
    rows = [row for key, result in journal.results.items() if key != ROOFS for row in result]
    if rows:
        write_report(options.output, rows, roofs=journal.results[ROOFS], about=journal.about, unfinished=unfinished)
        print(f"Table, CSV and plot are in {options.output}")
    print("\n".join(unfinished))
    return rows


if __name__ == "__main__":
    main()
