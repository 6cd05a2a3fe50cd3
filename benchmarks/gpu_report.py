"""The tables and the image that `benchmarks.gpu_table` makes of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.gpu_cases import ATTENTION, LAYER, STAGES
from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.measure.memory import METHOD
from sparsight.common.measure.roofline import FLOORS, Roofs, Work
from sparsight.common.tables import csv_text, markdown_table, short
from sparsight.diffusion.measure.candidates import BACKWARD
from sparsight.diffusion.measure.flops import COUNTED

Row = Mapping[str, Any]
Ways = Sequence[tuple[str, str, str]]
# how a candidate ran: heading, mode, direction
WAYS: Ways = (
    ("eager", "eager", "forward"),
    ("compiled", "compiled", "forward"),
    ("eager, forward+backward", "eager", "forward+backward"),
    ("compiled, forward+backward", "compiled", "forward+backward"),
)
GOAL = 0.5  # share of the copy bandwidth that depthwise stages should reach
FACTS = ("device", "driver", "torch", "cuda", "cudnn", "triton", "diffusers", "sparsight", "date", "backend")


class Line:
    """All rows of one candidate at one shape: eager or compiled, with or without a backward pass."""

    def __init__(self, rows: Sequence[Row], roofs: Roofs) -> None:
        self.first, self.roofs = rows[0], roofs
        self.by_way = {(row["mode"], row["direction"]): row for row in rows}

    def __getitem__(self, name: str) -> Any:
        return self.first[name]

    def seconds(self, mode: str, direction: str = "forward") -> float | None:
        """Median time, if it was measured."""
        row = self.by_way.get((mode, direction))
        return row["seconds"] if row else None

    @property
    def best(self) -> float | None:
        """The shorter of the forward times, eager and compiled."""
        found = [seconds for mode in ("eager", "compiled") if (seconds := self.seconds(mode))]
        return min(found, default=None)

    @property
    def forward(self) -> Row | None:
        """A row of the forward pass, eager if there is one."""
        return self.by_way.get(("eager", "forward")) or self.by_way.get(("compiled", "forward"))

    @property
    def floor(self) -> float | None:
        """Seconds below which no forward pass can stay."""
        row = self.forward
        return Work(row["least_bytes"], row["least_flops"]).seconds(self.roofs) if row else None

    def rate(self, name: str) -> float | None:
        """``least_bytes`` or ``least_flops`` of the forward pass per second of the best one."""
        return self.forward[name] / self.best if self.forward and self.best else None

    def times(self, ways: Ways, reference: Line | None = None) -> dict[str, str]:
        """Milliseconds of every way, with the ratio to a reference that ran the same way."""
        cells = {}
        for heading, mode, direction in ways:
            own = self.seconds(mode, direction)
            other = reference.seconds(mode, direction) if reference else None
            ratio = f" ({other / own:.2f}x)" if own and other and reference is not self else ""
            cells[f"{heading} ms"] = f"{1e3 * own:.3g}{ratio}" if own else "-"
        return cells

    @property
    def skipped(self) -> str:
        """Why times are missing."""
        return "; ".join(dict.fromkeys(row["skipped"] for row in self.by_way.values() if row["skipped"]))


def lines_of(rows: Sequence[Row], roofs: Roofs, level: str) -> list[Line]:
    """Rows of one level, put together by candidate and shape, in the order of model, shape and size."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["level"] == level:
            names = ("model", "kind", "pixels", "candidate", "part")
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
    order = list(dict.fromkeys(row["model"] for row in rows))
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1], key[2]))  # stable: candidates keep theirs
    return [Line(groups[key], roofs) for key in keys]


def write_report(
    folder: Path, rows: Sequence[Row], *, roofs: Mapping[str, float], about: Row, unfinished: Sequence[str]
) -> None:
    """Write ``table.md``, ``rows.csv`` and ``table.png``."""
    measured = Roofs(**roofs)
    write_text(folder / "rows.csv", csv_text([dict(row) for row in rows]))
    write_text(folder / "table.md", markdown(rows, measured, about, unfinished))
    title = f"{about['device']}, torch {about['torch']}, {about['dtype']}, batch {about['batch']}, {about['date'][:10]}"
    write_whole(folder / "table.png", lambda path: plot(rows, measured, path, title=title))


def markdown(rows: Sequence[Row], roofs: Roofs, about: Row, unfinished: Sequence[str]) -> str:
    """All tables on one page."""
    facts = [{"": name, "value": about[name]} for name in FACTS if about.get(name) is not None]
    limits = [
        {"roof": "copy", "measured": f"{roofs.copy / 1e9:.4g} GB/s"},
        {"roof": f"matmul, {about['dtype']}", "measured": f"{roofs.matmul / 1e12:.4g} TFLOP/s"},
        {"roof": "vector, float32", "measured": f"{roofs.vector / 1e12:.4g} TFLOP/s"},
    ]
    parts = [
        f"# Attention and its replacements on {about['device']}",
        f"{about['dtype']}, batch {about['batch']}, medians of up to {about['runs']} interleaved runs; in brackets "
        "the speed-up over attention that ran the same way. Columns are explained in docs/gpu.md.",
        markdown_table(facts),
        markdown_table(limits),
        *(["\n".join(["Unfinished:", "", *(f"- {reason}" for reason in unfinished)])] if unfinished else []),
    ]
    for level, heading, table in (
        ("denoiser", "Whole denoiser, all self-attentions replaced", _compared),
        ("depthwise", "Depthwise stages of DeltaConvBlock", _depthwise),
        ("layer", "One layer", _compared),
    ):
        if lines := lines_of(rows, roofs, level):
            parts += [
                f"## {heading}",
                *([verdict(lines)] if level == "depthwise" else []),
                markdown_table(table(lines)),
            ]
    return "\n\n".join([*parts, "## Notes", FLOORS, COUNTED, METHOD, BACKWARD, ""])


def verdict(lines: Sequence[Line]) -> str:
    """How many depthwise stages fall short of half of the copy bandwidth."""
    rates = [(rate / line.roofs.copy, line) for line in lines if (rate := line.rate("least_bytes"))]
    sentences = []
    for name, chosen in (
        ("blocks of stages", [pair for pair in rates if pair[1]["part"] == STAGES]),
        ("single convolutions", [pair for pair in rates if pair[1]["part"] != STAGES]),
    ):
        if chosen:
            short_of = sum(share < GOAL for share, _ in chosen)
            low, high = min(share for share, _ in chosen), max(share for share, _ in chosen)
            sentences.append(
                f"{short_of} of {len(chosen)} {name} fall short of {GOAL:.0%} of the copy bandwidth "
                f"(from {low:.1%} to {high:.1%})."
            )
    return " ".join(sentences)


def _compared(lines: Sequence[Line]) -> list[dict[str, str]]:
    """A line for every candidate, beside the attention at the same shape."""
    ways = _ways(lines)
    yardsticks = {_shape(line): line for line in lines if line["candidate"] == ATTENTION}
    return [
        {
            **_heading(line),
            "candidate": line["candidate"],
            **line.times(ways, yardsticks.get(_shape(line))),
            "peak MiB": _mebibytes(line.forward["peak_bytes"] if line.forward else None),
            "weights MiB": _mebibytes(line["weight_bytes"]),
            "FLOPs": short(line.forward["least_flops"]) if line.forward else "-",
            "least MiB": _mebibytes(line.forward["least_bytes"] if line.forward else None),
            "floor ms": f"{1e3 * line.floor:.3g}" if line.floor else "-",
            "floor / best": _share(line.floor and line.best and line.floor / line.best),
            "skipped": line.skipped,
        }
        for line in lines
    ]


def _depthwise(lines: Sequence[Line]) -> list[dict[str, str]]:
    """A line for all stages of a block and for each of its convolutions."""
    ways = _ways(lines)
    return [
        {
            **_heading(line),
            "block": line["candidate"],
            "part": line["part"],
            **line.times(ways),
            "FLOP per byte": f"{line.forward['least_flops'] / line.forward['least_bytes']:.3g}"
            if line.forward
            else "-",
            "of copy bandwidth": _share((line.rate("least_bytes") or 0) / line.roofs.copy),
            "of vector rate": _share((line.rate("least_flops") or 0) / line.roofs.vector),
            "skipped": line.skipped,
        }
        for line in lines
    ]


def _heading(line: Line) -> dict[str, str]:
    site = {} if not line["site"] else {"tokens": str(line["tokens"]), "C": str(line["channels"])}
    heads = {"heads": str(line["heads"]), "layers": str(line["layers"])} if line["part"] == LAYER else {}
    return {"model": line["model"], "pixels": str(line["pixels"]), **site, **heads}


def _ways(lines: Sequence[Line]) -> Ways:
    """Those that were measured."""
    return [way for way in WAYS if any(line.seconds(*way[1:]) for line in lines)]


def _shape(line: Line) -> tuple[Any, ...]:
    return line["model"], line["kind"], line["pixels"]


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.3g}"


def _share(value: float | None) -> str:
    return f"{value:.1%}" if value else "-"


def plot(rows: Sequence[Row], roofs: Roofs, path: Path, *, title: str) -> None:
    """A PNG of log-log panels: the layer with most tokens and the whole denoiser, a column for every model."""
    levels = [level for level in ("layer", "denoiser") if any(row["level"] == level for row in rows)]
    models = list(dict.fromkeys(row["model"] for row in rows))
    if not levels:  # depthwise stages alone have no attention to compare with
        return
    figure = Figure(figsize=(4.6 * len(models) + 1, 3.6 * len(levels) + 1.2), layout="constrained")
    axes = figure.subplots(len(levels), len(models), squeeze=False)
    names = list(dict.fromkeys(row["candidate"].partition(",")[0] for row in rows if row["level"] in levels))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    for line, level in zip(axes, levels, strict=True):
        for panel, model in zip(line, models, strict=True):
            chosen = [x for x in lines_of(rows, roofs, level) if x["model"] == model and x["kind"] == 0]
            _panel(panel, chosen, colours)
            panel.set_title(f"{model}, {_subject(chosen)}", fontsize=9)
    handles: dict[str, Any] = {}
    for panel in axes.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=1 + len(models), frameon=False, fontsize=8
    )
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)


def _panel(panel: Any, lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    for label in dict.fromkeys(line["candidate"] for line in lines):
        name, own = label.partition(",")[0], [line for line in lines if line["candidate"] == label]
        for mode, style in (("eager", "-"), ("compiled", "--")):
            points = [(line["pixels"], 1e3 * seconds) for line in own if (seconds := line.seconds(mode))]
            if points:
                x, y = zip(*points, strict=True)
                panel.plot(
                    x, y, color=colours[name], linestyle=style, marker="o", markersize=3, label=f"{name}, {mode}"
                )
        floors = [(line["pixels"], 1e3 * line.floor) for line in own if line.floor]
        if floors and name in (ATTENTION, "delta default"):
            x, y = zip(*floors, strict=True)
            panel.plot(x, y, color=colours[name], linestyle=":", marker="_", label=f"{name}, floor")
    sizes = sorted({line["pixels"] for line in lines})
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.set_xlabel("image side, pixels")
    panel.set_ylabel("ms, forward")
    panel.grid(alpha=0.3, which="both")


def _subject(lines: Sequence[Line]) -> str:
    if not lines or not lines[0]["site"]:
        return "whole denoiser"
    return f"one layer of {lines[0]['channels']} channels, {lines[0]['heads']} heads"
