"""Everything that is to be known from a GPU, in one run of minutes: what matters most first.

Roofs of the device, kernels against float64, depthwise convolutions, a layer, whole denoisers, the layer-wise step, the
tests. Every row is on disk as soon as it is there; the same command goes on where the last one stopped; ``--report``
makes the tables of what there is at any moment. docs/gpu.md explains the columns.

    python -m benchmarks.gpu_run --minutes 8
    python -m benchmarks.gpu_run --device cpu --plan tiny        no figures, but a run of all that is needed for them
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_plan import PLANS, Piece
from benchmarks.gpu_tables import markdown
from sparsight.common.disk.files import write_text
from sparsight.common.disk.journal import Journal, read_results
from sparsight.common.measure.environment import environment
from sparsight.common.measure.memory import is_out_of_memory
from sparsight.common.tables import csv_text

ROWS = "rows.jsonl"


def run(pieces: Sequence[Piece], journal: Journal, *, deadline: float, again: bool = False) -> list[str]:
    """Measure what the journal lacks until the deadline.

    Args:
        pieces: In the order in which they are wanted.
        journal: Where rows go, one entry a piece.
        deadline: Of ``time.monotonic``; a piece that would take longer is left for the next run.
        again: Whether pieces that failed are tried again.

    Returns:
        What failed, and what is left.
    """
    failures, left = [], []
    for piece in pieces:
        known = journal.results.get(piece.key)
        if known is not None and not (again and any(row.get("failed") for row in known)):
            continue
        if time.monotonic() + piece.seconds > deadline:
            left.append(piece.key)
            continue
        begin = time.monotonic()
        try:
            rows = piece.measure()
        except Exception as error:  # one piece's trouble must not cost the others
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}".splitlines()[0]
            rows = [{"failed": reason}]
            failures.append(f"{piece.key}: {reason}")
        journal.add(piece.key, rows)
        print(f"{piece.key}: {len(rows)} rows in {time.monotonic() - begin:.1f} s", flush=True)
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failures + ([f"left for the same command: {', '.join(left)}"] if left else [])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_run"))
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun that would end after that time")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the tables of what is there")
    parser.add_argument("--again", action="store_true", help="try again what failed")
    parser.add_argument("--only", nargs="+", default=[], help="pieces whose names begin so, e.g. layer kernels")
    parser.add_argument("--plan", default="full", choices=list(PLANS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not options.report and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; to see that all is in place: --device cpu --plan tiny")
    if options.device.type == "cpu" and options.plan == "full":
        parser.error("the full plan is for a GPU; on a CPU: --plan tiny")
    return options


def report(folder: Path, about: dict[str, Any], results: dict[str, list[dict[str, Any]]], unfinished: list[str]) -> str:
    """Write ``table.md`` and ``rows.csv``, and give the page."""
    rows = [{"piece": key, **row} for key, found in results.items() for row in found]
    page = markdown(about, results, unfinished)
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_text(folder / "rows.csv", csv_text([{name: row.get(name) for name in names} for row in rows]))
    write_text(folder / "table.md", page)
    return page


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Measure, print and write; rows by piece, of this and of earlier runs into the same folder."""
    options = parse(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    path = options.output / ROWS
    if options.report:
        results = read_results(path)
        print(report(options.output, {}, results, []))
        return results
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "16")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the best of the library's kernels
    torch._dynamo.config.recompile_limit = 64  # one for every kind of block of a denoiser
    journal = Journal(path, environment(options.device) | {"plan": options.plan})
    pieces = PLANS[options.plan](options.device)
    wanted = [piece for piece in pieces if not options.only or piece.key.startswith(tuple(options.only))]
    unfinished = run(wanted, journal, deadline=deadline, again=options.again)
    print(report(options.output, journal.about, journal.results, unfinished))
    return journal.results


if __name__ == "__main__":
    main()
