"""Mixers against the attentions they replace, and the student against its teacher: FLOPs, time and memory over sizes.

Both candidates of a row run in turn in one process; their ratio is what can be claimed. The attention is diffusers'
own with torch's fused attention, projections included, as they are for core mixers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import torch
from torch import nn

from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.errors import ConfigurationError
from sparsight.common.measure.contest import Contest, Measured
from sparsight.common.measure.environment import environment
from sparsight.common.measure.latency import Call
from sparsight.common.measure.memory import METHOD
from sparsight.common.tables import WIDTH, csv_text, json_text
from sparsight.diffusion.measure import candidates
from sparsight.diffusion.measure.flops import COUNTED, attention_flops, count_flops, mixer_flops
from sparsight.diffusion.measure.plot import plot_rows
from sparsight.diffusion.measure.report import own_size, replacement_report
from sparsight.diffusion.measure.rows import Row, table
from sparsight.diffusion.measure.verify import Verdict, verify
from sparsight.diffusion.surgery.sites import meta_twin, probe_grids, students

TIMES = "Times are medians [10th percentile, 90th percentile] in milliseconds."
WEIGHTS = "Weights: mixers as the module holds them, untrained without a checkpoint; cost does not depend on it."
TOKENS = (256, 1024, 4096, 16384)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What is measured, and for how long.

    Args:
        tokens: Sizes: tokens of a site, and of the denoiser's largest site.
        dtypes: Precisions: float32, bfloat16, float16.
        batch: Samples B.
        backward: Measure forward and backward pass together too, not forward alone.
        runs: Timed runs of each candidate, taken in turn.
        max_seconds: Time for all runs of one candidate at one size; sizes at which the first run alone takes more
            than a quarter of it are skipped.
        clock: ``wall``, or ``processor`` for the processor time of all threads, on a CPU.

    Raises:
        ConfigurationError: A size, precision or number is out of range.
    """

    tokens: Sequence[int] = TOKENS
    dtypes: Sequence[str] = ("float32",)
    batch: int = 1
    backward: bool = True
    runs: int = 20
    max_seconds: float = 20.0
    clock: Literal["wall", "processor"] = "wall"

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 1:
            raise ConfigurationError(
                f"tokens are one or more positive numbers, e.g. 256 1024 4096; got {list(self.tokens)}"
            )
        if not self.dtypes or not set(self.dtypes) <= set(DTYPES):
            raise ConfigurationError(f"dtypes are one or more of {', '.join(DTYPES)}; got {list(self.dtypes)}")
        if min(self.batch, self.runs) < 1 or self.max_seconds <= 0:
            raise ConfigurationError(f"batch, runs and max_seconds are positive; got {self}")
        if self.clock not in ("wall", "processor"):
            raise ConfigurationError(f"clock is wall or processor; got {self.clock!r}")


def benchmark_sites(denoiser: nn.Module, settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows of every distinct replaced site: one for each precision, size and pass.

    Sites with equal widths, heads and mixer options are one; the first of them is named. A mixer that does not match
    its reference (``sparsight.diffusion.measure.verify.verify``) is not timed.
    """
    for path, student in distinct_sites(denoiser).items():
        attention = candidates.attention_like(denoiser, path)
        for dtype in settings.dtypes:
            verdict = verify(student.mixer, dtype=DTYPES[dtype], device=device)
            modules = [candidates.ready(module, device, DTYPES[dtype]) for module in (attention, student)]
            contests = _contests(settings, device)
            for tokens in sorted(settings.tokens):
                grid = candidates.grid_of(tokens)
                site = student.mixer.site
                shape, options = (settings.batch, site.channels), {"device": device, "dtype": DTYPES[dtype]}
                calls = [candidates.site_calls(module, shape, grid, **options) for module in modules]
                for name, contest in contests.items():
                    measured = _measure(contest, tokens, calls[0][name], calls[1][name], [verdict])
                    yield Row(
                        level="site",
                        name=path,
                        mixer=type(student.mixer).__name__,
                        heads=site.heads,
                        channels=site.channels,
                        tokens=tokens,
                        height=grid.height,
                        width=grid.width,
                        batch=settings.batch,
                        dtype=dtype,
                        direction=name,
                        verified=verdict.against,
                        attention_flops=settings.batch * attention_flops(site, grid),
                        mixer_flops=settings.batch * mixer_flops(student.mixer, grid),
                        attention=measured["attention"],
                        mixed=measured["mixer"],
                    )


def distinct_sites(denoiser: nn.Module) -> dict[str, Any]:
    """The first replaced site, by path, of every kind: equal channels, heads, mixer class and options."""
    kinds: dict[str, tuple[str, Any]] = {}
    for path, student in students(denoiser).items():
        site, mixer = student.mixer.site, student.mixer
        kind = repr((site.channels, site.heads, site.head_dim, type(mixer), mixer.options))
        kinds.setdefault(kind, (path, student))
    return dict(kinds.values())


def benchmark_denoiser(denoiser: nn.Module, settings: Settings, device: torch.device) -> Iterator[Row]:
    """Rows of the whole denoiser: the untouched one against the student, at the sizes that give so many tokens."""
    teacher, student = candidates.teacher_and_student(denoiser)
    twin, refused = meta_twin(denoiser), refused_sizes(denoiser, settings.tokens)
    mixers = [module.mixer for module in distinct_sites(denoiser).values()]
    for dtype in settings.dtypes:
        verdicts = [verify(mixer, dtype=DTYPES[dtype], device=device) for mixer in mixers]
        modules = [candidates.ready(module, device, DTYPES[dtype]) for module in (teacher, student)]
        contests = _contests(settings, device)
        for wanted in sorted(set(settings.tokens) - set(refused)):
            shape = _shape(denoiser, wanted)
            tokens = max(grid.tokens for grid in probe_grids(denoiser, shape).values())
            flops = [count_flops(module, size=shape, batch=settings.batch) for module in (twin, student)]
            calls = [candidates.denoiser_calls(module, shape, batch=settings.batch) for module in modules]
            for name, contest in contests.items():
                measured = _measure(contest, tokens, calls[0][name], calls[1][name], verdicts)
                yield Row(
                    level="denoiser",
                    name="whole denoiser",
                    mixer=" + ".join(sorted({type(mixer).__name__ for mixer in mixers})),
                    heads=None,
                    channels=None,
                    tokens=tokens,
                    height=shape[0],
                    width=shape[1],
                    batch=settings.batch,
                    dtype=dtype,
                    direction=name,
                    verified=" / ".join(sorted({verdict.against for verdict in verdicts})),
                    attention_flops=flops[0],
                    mixer_flops=flops[1],
                    attention=measured["attention"],
                    mixed=measured["mixer"],
                )


def refused_sizes(denoiser: nn.Module, tokens: Sequence[int]) -> dict[int, str]:
    """Why a denoiser is not measured at some of these sizes: models with a table of positions have a largest one."""
    twin, refused = meta_twin(denoiser), {}
    for wanted in tokens:
        try:
            count_flops(twin, size=_shape(denoiser, wanted), batch=1)
        except ValueError as error:
            refused[wanted] = f"The whole denoiser is not measured at {wanted} tokens, which it does not take: {error}"
    return refused


def _shape(denoiser: nn.Module, tokens: int) -> tuple[int, ...]:
    """Height and width in model space that give the largest site so many tokens, or about."""
    own = max(grid.tokens for grid in probe_grids(denoiser).values())
    return candidates.size_for(denoiser, own, own_size(denoiser), tokens)


def _contests(settings: Settings, device: torch.device) -> dict[str, Contest]:
    passes = candidates.PASSES if settings.backward else candidates.PASSES[:1]
    processor = settings.clock == "processor"
    if processor and device.type != "cpu":
        raise ConfigurationError(f"clock: processor tells nothing of work on {device.type}: leave it out, or use a CPU")
    return {name: Contest(device, settings.runs, settings.max_seconds, processor=processor) for name in passes}


def _measure(
    contest: Contest, tokens: int, attention: Call, mixer: Call, verdicts: Sequence[Verdict]
) -> dict[str, Measured]:
    refusal = next((verdict.refusal for verdict in verdicts if verdict.refusal), None)
    return contest.measure(tokens, {"attention": attention, "mixer": refusal or mixer})


def run_benchmark(
    denoiser: nn.Module,
    settings: Settings,
    *,
    device: torch.device,
    folder: Path,
    on_row: Callable[[Row], object] = lambda row: None,
) -> list[Row]:
    """Measure sites and whole denoiser, and write ``benchmark.json``, ``.csv``, ``.txt`` and ``.png`` into ``folder``.

    Args:
        denoiser: With mixers in it; neither moved nor changed.
        settings: What is measured.
        device: Where to measure.
        folder: For the files; made if missing, files of an earlier benchmark are replaced.
        on_row: Called with every row as soon as it is there.

    Raises:
        ValueError: The denoiser has no mixers.
    """
    report = replacement_report(denoiser)
    rows = []
    for benchmark in (benchmark_sites, benchmark_denoiser):
        for row in benchmark(denoiser, settings, device):
            rows.append(row)
            on_row(row)
    around = environment(device)
    notes = [COUNTED, METHOD, candidates.BACKWARD, TIMES, WEIGHTS, *refused_sizes(denoiser, settings.tokens).values()]
    everything = {
        "environment": around,
        "settings": asdict(settings),
        "notes": notes,
        "replaced": report.as_dict(),
        "rows": [row.flat() for row in rows],
    }
    write_text(folder / "benchmark.json", json_text(everything))
    write_text(folder / "benchmark.csv", csv_text([row.flat() for row in rows]))
    write_text(folder / "benchmark.txt", "\n".join([report.text(), "", table(rows), *notes, ""]))
    title = f"{around['device']}, {around['threads']} thread(s), torch {around['torch']}, batch {settings.batch}"
    write_whole(folder / "benchmark.png", lambda path: plot_rows(rows, path, title=title))
    return rows


def benchmark_model(model: nn.Module, settings: Settings, *, device: torch.device, folder: Path) -> None:
    """``run_benchmark`` of a LightningModule's denoiser, printing rows as they come and the table at the end.

    Raises:
        ConfigurationError: The module has no denoiser with mixers in it.
    """
    denoiser = dict(model.named_children()).get("denoiser")
    if denoiser is None or not students(denoiser):
        raise ConfigurationError(
            f"{type(model).__name__} has no mixers to measure: benchmark lightning_modules.AttentionDistillation"
        )
    for note in (_longest(denoiser, settings), *refused_sizes(denoiser, settings.tokens).values()):
        print(fill(note, WIDTH, break_on_hyphens=False), flush=True)
    rows = run_benchmark(denoiser, settings, device=device, folder=folder, on_row=_announce)
    print("\n" + table(rows))
    print(f"\n{fill(TIMES, WIDTH)}\n{fill(WEIGHTS, WIDTH)}")
    print(f"\nWritten to {folder}: benchmark.txt, benchmark.csv, benchmark.json, benchmark.png")


def _longest(denoiser: nn.Module, settings: Settings) -> str:
    """What is going to be measured and how long that takes at most: attention over many tokens needs most of it."""
    passes = 2 if settings.backward else 1
    rows = (len(distinct_sites(denoiser)) + 1) * len(settings.dtypes) * len(settings.tokens) * passes
    return (
        f"measuring {rows} pairs, each of the two for at most {settings.max_seconds:g} s: fewer or smaller --tokens, "
        "fewer --runs, a lower --max_seconds, or --backward false take less"
    )


def _announce(row: Row) -> None:
    print(f"measured {row.name}, {row.tokens} tokens, {row.dtype}, {row.direction}", flush=True)
