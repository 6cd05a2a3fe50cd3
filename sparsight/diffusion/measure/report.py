"""What was replaced in a denoiser, and what that did to its parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from blocks.base import Grid, TokenMixer
from sparsight.common.tables import csv_text, format_table, json_text, short
from sparsight.diffusion.measure.flops import COUNTED, attention_flops, count_flops, meta_student, mixer_flops
from sparsight.diffusion.surgery.sites import find_sites, meta_twin, probe_grids, students

COSTS = "costs.json"  # in a run's log folder: a report as JSON


@dataclass(frozen=True)
class ReplacedSite:
    """One replaced self-attention; FLOPs are those of one image, see :data:`sparsight.diffusion.measure.flops.COUNTED`.

    A core mixer's parameters and FLOPs include the query, key, value and output projections that it keeps.
    """

    path: str
    heads: int
    channels: int
    height: int
    width: int
    mixer: str
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    padded: str = ""  # sides of the grid that the mixer computes on, where that is larger

    @property
    def tokens(self) -> int:
        """Tokens N at the size of the report."""
        return self.height * self.width


@dataclass(frozen=True)
class ReplacementReport:
    """All replaced sites, and the whole denoiser before and after.

    Attributes:
        sites: One entry a site, in the order of the denoiser.
        size: Height and width in model space that the numbers are for.
        kept: Self-attentions that were left as they are.
        parameters_before: Of the untouched denoiser.
        parameters_after: Of the student, without the teachers that stand beside it in training.
        flops_before: Counted by torch for the untouched denoiser.
        flops_after: Those before, with every replaced site's formula in the place of its attention's.
        flops_after_counted: Counted by torch for the student. It differs from ``flops_after`` where a mixer computes
            more than its method needs, such as neighbourhood attention in its dense reference form.
    """

    sites: tuple[ReplacedSite, ...]
    size: tuple[int, int]
    kept: int
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    flops_after_counted: int

    def rows(self) -> list[dict[str, object]]:
        """Plain rows, one a site, then the sum over sites and the whole denoiser."""
        names = ("parameters_before", "parameters_after", "flops_before", "flops_after")
        sites: list[dict[str, Any]] = [asdict(site) | {"tokens": site.tokens} for site in self.sites]
        own = asdict(self)
        empty = dict.fromkeys(sites[0], "")
        total = empty | {"path": "all replaced sites"} | {n: sum(site[n] for site in sites) for n in names}
        whole = empty | {"path": "whole denoiser"} | {n: own[n] for n in names}
        return [*sites, total, whole]

    def text(self) -> str:
        """A table to read."""
        lines = [
            {
                "site": row["path"],
                "heads": row["heads"],
                "channels": row["channels"],
                "tokens": _tokens(row),
                "mixer": row["mixer"],
                "parameters": _change(row["parameters_before"], row["parameters_after"]),
                "FLOPs": _change(row["flops_before"], row["flops_after"]),
            }
            for row in self.rows()
        ]
        notes = [f"At {self.size[0]}x{self.size[1]} in model space; {self.kept} self-attentions kept. {COUNTED}"]
        if self.flops_after_counted != self.flops_after:
            notes.append(
                f"torch counts {short(self.flops_after_counted)} for the student as it is run: a mixer computes more "
                "than its formula says."
            )
        return "\n".join([format_table(lines), *notes])

    def as_dict(self) -> dict[str, object]:
        """Everything as plain data, for JSON."""
        return asdict(self) | {"counted": COUNTED}

    def json(self) -> str:
        """JSON of :meth:`as_dict`."""
        return json_text(self.as_dict())

    def csv(self) -> str:
        """CSV of :meth:`rows`."""
        return csv_text(self.rows())


def replacement_report(denoiser: nn.Module, *, size: tuple[int, int] | None = None) -> ReplacementReport:
    """Report on a denoiser with mixers, whether their teachers still stand beside them or are gone.

    Args:
        denoiser: What :func:`sparsight.diffusion.surgery.replace.replace` changed; not changed here, and not run.
        size: Height and width in model space; the config's ``sample_size`` if not given.

    Raises:
        ValueError: Nothing was replaced.
    """
    replaced = students(denoiser)
    if not replaced:
        raise ValueError("nothing to report: this denoiser has no mixers; replace self-attentions first")
    teacher, student = meta_twin(denoiser), meta_student(denoiser)
    size = size or own_size(denoiser)
    grids = probe_grids(denoiser, size)
    before = {site.path: site for site in find_sites(teacher)}
    sites = tuple(
        ReplacedSite(
            path=path,
            heads=before[path].heads,
            channels=before[path].channels,
            height=grids[path].height,
            width=grids[path].width,
            mixer=type(module.mixer).__name__,
            parameters_before=_parameters(teacher.get_submodule(path)),
            parameters_after=_parameters(student.get_submodule(path)),
            flops_before=attention_flops(before[path], grids[path]),
            flops_after=mixer_flops(module.mixer, grids[path]),
            padded=_padded(module.mixer, grids[path]),
        )
        for path, module in replaced.items()
    )
    flops_before = count_flops(teacher, size=size)
    return ReplacementReport(
        sites=sites,
        size=size,
        kept=len(before) - len(sites),
        parameters_before=_parameters(teacher),
        parameters_after=_parameters(student),
        flops_before=flops_before,
        flops_after=flops_before + sum(site.flops_after - site.flops_before for site in sites),
        flops_after_counted=count_flops(denoiser, size=size),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def own_size(denoiser: Any) -> tuple[int, int]:
    """Height and width, in model space, that the denoiser was made for."""
    side = denoiser.config.sample_size
    return tuple(side) if isinstance(side, (tuple, list)) else (side, side)


def _padded(mixer: TokenMixer, grid: Grid) -> str:
    parts = (part for part in mixer.modules() if isinstance(part, TokenMixer))
    return " and ".join(sorted({str(part.padded(grid)) for part in parts if part.padded(grid) != grid}))


def _tokens(row: Mapping[str, Any]) -> str:
    sides = f"{row['height']}x{row['width']}" + (f", padded to {row['padded']}" if row["padded"] else "")
    return f"{row['tokens']} ({sides})" if row["tokens"] else ""


def _change(before: object, after: object) -> str:
    assert isinstance(before, int) and isinstance(after, int)
    ratio = f" ({before / after:.2f}x less)" if 0 < after < before else ""
    return f"{short(before)} -> {short(after)}{ratio}"
