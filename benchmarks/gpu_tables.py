"""The page that ``benchmarks.gpu_run`` makes of its rows, whatever is there of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_pieces import ATTENTION
from sparsight.common.measure.roofline import FLOORS
from sparsight.common.tables import markdown_table

Rows = Sequence[Mapping[str, Any]]
FACTS = ("device", "driver", "torch", "cuda", "cudnn", "triton", "diffusers", "sparsight", "date", "plan")
TABLES = {
    "denoiser": "Whole denoisers",
    "layer": "One layer",
    "step": "The layer-wise step, without the optimiser",
    "depthwise": "Depthwise convolutions of torch",
    "kernels": "Triton kernels against float64, relative L2",
    "tests": "Tests that need a GPU",
}


def markdown(about: Mapping[str, Any], results: Mapping[str, Rows], unfinished: Sequence[str]) -> str:
    """Facts, roofs, and a table for every kind of piece that there is."""
    facts = [{"": name, "value": str(about[name])} for name in FACTS if about.get(name) is not None]
    roofs = highest(results)
    parts = ["# One run on a GPU", *([markdown_table(facts)] if facts else [])]
    if roofs:
        shown = {"copy": (1e9, "GB/s"), "matmul": (1e12, "TFLOP/s"), "vector": (1e12, "TFLOP/s")}
        parts.append(
            markdown_table([{"roof": n, "measured": f"{roofs[n] / unit:.4g} {of}"} for n, (unit, of) in shown.items()])
        )
    if unfinished:
        parts.append("\n".join(["Unfinished:", "", *(f"- {reason}" for reason in unfinished)]))
    for kind, heading in TABLES.items():
        lines = [
            {"piece": key.partition(" ")[2], **_shown(row, rows, roofs)}
            for key, rows in results.items()
            if key.split()[0] == kind
            for row in rows
        ]
        if lines:
            names = list(dict.fromkeys(name for line in lines for name in line))
            parts += [f"## {heading}", markdown_table([{n: line.get(n, "") for n in names} for line in lines])]
    return "\n\n".join([*parts, FLOORS, ""])


def highest(results: Mapping[str, Rows]) -> dict[str, float]:
    """The highest roofs that were measured: whatever else the device does can only lower them."""
    found = [row for key, rows in results.items() if key.startswith("roofs") for row in rows if "copy" in row]
    return {name: max(row[name] for row in found) for name in ("copy", "matmul", "vector")} if found else {}


def _shown(row: Mapping[str, Any], rows: Rows, roofs: Mapping[str, float]) -> dict[str, str]:
    """A row as texts: milliseconds, the ratio to attention that ran the same way, and the share of the floor."""
    line = {n: _text(v) for n, v in row.items() if n not in ("seconds", "runs", "least_bytes", "least_flops")}
    if not (seconds := row.get("seconds")):
        return line
    line["ms"] = f"{1e3 * seconds:.4g}"
    same = [other for other in rows if _way(other) == _way(row) and other.get("candidate") == ATTENTION]
    if same and same[0].get("seconds"):
        line["against attention"] = f"{same[0]['seconds'] / seconds:.2f}"
    teacher = [other for other in rows if _way(other) == _way(row) and other.get("candidate") == "teacher forward"]
    if teacher and teacher[0].get("seconds"):
        line["of the teacher's forward"] = f"{seconds / teacher[0]['seconds']:.2f}"
    if roofs and row.get("least_bytes") and row.get("direction", "forward") == "forward":
        floor = max(row["least_bytes"] / roofs["copy"], row.get("least_flops", 0) / roofs["matmul"])
        line["floor / time"] = f"{floor / seconds:.0%}"
    return line


def _way(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("mode"), row.get("direction"), row.get("mixers")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if isinstance(value, float) else str(value)
