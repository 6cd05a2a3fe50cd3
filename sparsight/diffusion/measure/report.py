"""What was replaced in a denoiser, and what that did to its parameters and FLOPs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any

from torch import nn

from blocks.base import Grid, TokenMixer
from sparsight.common.tables import csv_text, format_table, json_text, short
from sparsight.common.training.sharding import own_class
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.measure.flops import COUNTED, attention_flops, count_flops, meta_student, mixer_flops
from sparsight.diffusion.surgery.sites import find_sites, meta_twin, probe_grids, students

_WHERE = 28  # characters of a place in the table
COSTS = "costs.json"  # in a run's log folder: a report as JSON


@dataclass(frozen=True)
class ReplacedSite:
    """One replaced self-attention; FLOPs are those of one image, see ``sparsight.diffusion.measure.flops.COUNTED``.

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
    frames: int = 1

    @property
    def tokens(self) -> int:
        """Tokens N at the size of the report."""
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class ReplacementReport:
    """All replaced sites, and the whole denoiser before and after.

    Attributes:
        sites: One entry a site, in the order of the denoiser.
        size: Sides in model space that the numbers are for.
        kept: Self-attentions that were left as they are.
        parameters_before: Of the untouched denoiser.
        parameters_after: Of the student, without the teachers that stand beside it in training.
        flops_before: Counted by torch for the untouched denoiser.
        flops_after: Those before, with every replaced site's formula in the place of its attention's.
        flops_after_counted: Counted by torch for the student. It differs from ``flops_after`` where a mixer computes
            more than its method needs, such as neighbourhood attention in its dense reference form.
    """

    sites: tuple[ReplacedSite, ...]
    size: tuple[int, ...]
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
        """A table to read, of 80 columns as a rule: sites that are alike in a row."""
        *sites, total, whole = self.rows()
        alike: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in sites:
            block = str(row["path"]).partition(".")[0]
            alike[(block, *(value for key, value in row.items() if key != "path"))].append(row)
        mixers = list(dict.fromkeys(site.mixer for site in self.sites))
        rows = [_line(_where([row["path"] for row in group]), group) for group in alike.values()]
        rows += [_line(str(row["path"]), [row]) for row in (total, whole)]
        if len(mixers) == 1:
            rows = [{key: value for key, value in row.items() if key != "mixer"} for row in rows]
        by = f" by {mixers[0]}" if len(mixers) == 1 else ""
        notes = [
            f"{len(sites)} self-attentions replaced{by}, {self.kept} kept; a row's numbers are of one site. The whole "
            f"denoiser has {_less(self.parameters_before, self.parameters_after)} parameters and takes "
            f"{_less(self.flops_before, self.flops_after)} FLOPs at {'x'.join(map(str, self.size))} in model space.",
            COUNTED,
        ]
        if self.flops_after_counted != self.flops_after:
            notes.append(
                f"torch counts {short(self.flops_after_counted)} for the student as it is run: a mixer computes more "
                "than its formula says."
            )
        return "\n".join([format_table(rows), *(fill(note, 80) for note in notes)])

    def as_dict(self) -> dict[str, object]:
        """Everything as plain data, for JSON."""
        return asdict(self) | {"counted": COUNTED}

    def json(self) -> str:
        """JSON of ``as_dict``."""
        return json_text(self.as_dict())

    def csv(self) -> str:
        """CSV of ``rows``."""
        return csv_text(self.rows())


def replacement_report(denoiser: nn.Module, *, size: tuple[int, ...] | None = None) -> ReplacementReport:
    """Report on a denoiser with mixers, whether their teachers still stand beside them or are gone.

    Args:
        denoiser: What ``sparsight.diffusion.surgery.replace.replace`` changed; not changed here, and not run.
        size: Sides in model space; those that the denoiser was made for if not given.

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
            mixer=own_class(module.mixer).__name__,
            parameters_before=_parameters(teacher.get_submodule(path)),
            parameters_after=_parameters(student.get_submodule(path)),
            flops_before=attention_flops(before[path], grids[path]),
            flops_after=mixer_flops(module.mixer, grids[path]),
            padded=_padded(module.mixer, grids[path]),
            frames=grids[path].named.get("frames", 1),
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


def own_size(denoiser: Any) -> tuple[int, ...]:
    """Sides, in model space, that the denoiser was made for."""
    return family_of(denoiser).sample_shape(denoiser)[1:]


def _padded(mixer: TokenMixer, grid: Grid) -> str:
    parts = (part for part in mixer.modules() if isinstance(part, TokenMixer))
    return " and ".join(sorted({str(part.padded(grid)) for part in parts if part.padded(grid) != grid}))


def _tokens(row: Mapping[str, Any]) -> str:
    frames = f"{row['frames']}x" if row["frames"] not in ("", 1) else ""
    sides = f"{frames}{row['height']}x{row['width']}" + (f", padded to {row['padded']}" if row["padded"] else "")
    return f"{row['tokens']} ({sides})" if row["tokens"] else ""


def _line(where: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """A line of the table for sites that are alike."""
    row = rows[0]
    return {
        "where": where,
        "mixer": row["mixer"],
        "tokens": _tokens(row),
        "parameters": f"{short(row['parameters_before'])} -> {short(row['parameters_after'])}",
        "FLOPs": f"{short(row['flops_before'])} -> {short(row['flops_after'])}",
    }


def _where(paths: Sequence[str]) -> str:
    """What paths have in common, and how many there are."""
    parts = [set(each) for each in zip(*(path.split(".") for path in paths), strict=False)]
    common = ".".join(next(iter(part)) if len(part) == 1 else "*" for part in parts)
    if len(common) > _WHERE:
        common = f"{common.partition('.')[0]}...{common.rpartition('.')[2]}"
    return common if len(paths) == 1 else f"{common} ({len(paths)})"


def _less(before: int, after: int) -> str:
    """``1.68x fewer``, ``1.02x more`` or ``as many``."""
    if not before or not after or before == after:
        return "as many"
    return f"{before / after:.2f}x fewer" if after < before else f"{after / before:.2f}x more"
