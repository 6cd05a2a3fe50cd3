"""One line of a benchmark, and the table that such lines make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from sparsight.common.measure.contest import Measured
from sparsight.common.tables import WIDTH, format_table, short, whole

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """Attention and mixer, or teacher and student, at one size, precision and pass.

    Attributes:
        level: ``site`` or ``denoiser``.
        name: Path of the site; sites of the same kind are not repeated.
        mixer: Class of the mixer, or classes of the student's.
        heads: Of the site's attention.
        channels: Of the site.
        tokens: Of the site, or of the denoiser's largest one.
        height: In tokens for a site, in model space for a denoiser.
        width: In tokens for a site, in model space for a denoiser.
        batch: Samples.
        dtype: Precision of weights and inputs.
        direction: ``forward`` or ``forward+backward``.
        verified: What the mixer was compared with before it was timed.
        attention_flops: FLOPs of the forward pass with attention.
        mixer_flops: FLOPs of the forward pass with the mixer.
        attention: Time and memory with attention.
        mixed: Time and memory with the mixer.
    """

    level: str
    name: str
    mixer: str
    heads: int | None
    channels: int | None
    tokens: int
    height: int
    width: int
    batch: int
    dtype: str
    direction: str
    verified: str
    attention_flops: int
    mixer_flops: int
    attention: Measured
    mixed: Measured

    @property
    def speedup(self) -> float | None:
        """Median time with attention over median time with the mixer, of the same run."""
        if self.attention.timing is None or self.mixed.timing is None:
            return None
        return self.attention.timing.median / self.mixed.timing.median

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory with attention over peak memory with the mixer."""
        if not self.attention.peak or not self.mixed.peak:
            return None
        return self.attention.peak / self.mixed.peak

    def flat(self) -> dict[str, object]:
        """Plain values by column, for CSV and JSON: times in seconds, memory in bytes."""
        plain: dict[str, object] = {k: v for k, v in vars(self).items() if not isinstance(v, Measured)}
        for name, measured in (("attention", self.attention), ("mixer", self.mixed)):
            timing = measured.timing
            plain |= {
                f"{name}_seconds": timing and timing.median,
                f"{name}_seconds_p10": timing and timing.p10,
                f"{name}_seconds_p90": timing and timing.p90,
                f"{name}_runs": timing and timing.runs,
                f"{name}_peak_bytes": measured.peak,
                f"{name}_skipped": measured.skipped or None,
            }
        return plain | {"speedup": self.speedup, "memory_ratio": self.memory_ratio}

    def heading(self) -> str:
        """What the row has in common with its neighbours in a table."""
        shape = f" ({self.heads} heads, {self.channels} channels)" if self.channels else ""
        return fill(
            f"{self.name}{shape}, attention against {self.mixer}, {self.dtype}, batch {self.batch}; mixer compared "
            f"with {self.verified}",
            WIDTH,
            break_on_hyphens=False,
        )

    def readable(self) -> dict[str, str]:
        """Short texts by column, for a table."""
        return {
            "tokens": f"{self.tokens} ({self.height}x{self.width})",
            "pass": self.direction,
            "FLOPs": f"{short(self.attention_flops)} -> {short(self.mixer_flops)}",
            "faster": _times(self.speedup),
            "less memory": _times(self.memory_ratio),
            "attention ms": _milliseconds(self.attention),
            "mixer ms": _milliseconds(self.mixed),
            "attention MiB": _mebibytes(self.attention),
            "mixer MiB": _mebibytes(self.mixed),
        }

    def skipped(self) -> list[str]:
        """Why something of it was not measured."""
        pair = (("attention", self.attention), ("mixer", self.mixed))
        return [
            fill(f"{self.tokens} tokens, {self.direction}: no time of {who}: {measured.skipped}", WIDTH)
            for who, measured in pair
            if measured.skipped
        ]


def table(rows: Sequence[Row]) -> str:
    """All rows as text, a block for every site and precision; times are medians [10th, 90th percentile]."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(row.heading(), []).append(row)
    return "\n\n".join(
        "\n".join(
            [
                heading,
                format_table([row.readable() for row in block], width=WIDTH, keep=2),
                *(line for row in block for line in row.skipped()),
            ]
        )
        for heading, block in blocks.items()
    )


def _milliseconds(measured: Measured) -> str:
    timing = measured.timing
    if timing is None:
        return "-"
    return f"{whole(1e3 * timing.median)} [{whole(1e3 * timing.p10)}, {whole(1e3 * timing.p90)}]"


def _mebibytes(measured: Measured) -> str:
    return "-" if measured.peak is None else f"{whole(measured.peak / MIB)}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
