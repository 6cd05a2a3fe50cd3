"""What an analysis found, as tables and plain data.

Shape legend: R distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from sparsight.common.disk.files import write_text
from sparsight.common.names import short_names
from sparsight.common.tables import WIDTH, csv_text, format_table, json_text
from sparsight.diffusion.analyze.attention.high_pass import WAVELENGTH
from sparsight.diffusion.analyze.attention.rank import COLUMNS, SHARE
from sparsight.diffusion.analyze.attention.statistics import OUTLIER
from sparsight.diffusion.analyze.attention.sums import FIELD
from sparsight.diffusion.analyze.candidates import BASELINES, MEAN
from sparsight.diffusion.analyze.run import Recording, SiteRecord, refused
from sparsight.diffusion.measure.flops import attention_flops, mixer_flops

FORMAT = "sparsight attention analysis 1"
NOTES = (
    "Attention is that of image tokens to image tokens; text_share is what falls on text beside it.",
    "k x k windows are centred on the query; high_ is of the absolute value of the maps' high frequencies "
    f"(Butterworth, wavelengths below {WAVELENGTH:g} tokens).",
    f"receptive_field: side of the window with {FIELD:.0%} of the mass; even_receptive_field: of even attention. "
    "decay: p of distance^-p.",
    f"rank: directions with {SHARE:.0%} of a map's energy; {COLUMNS} means as many or more.",
    f"outlier_tokens: keys with more than {OUTLIER:g} times the mean attention.",
    "before, after: relative L2 error in front of and behind the site's last projection, on the teacher's own input; "
    "prediction: of what the denoiser returns with that site alone changed. Mixers are as they start from the teacher, "
    "untrained, unless a checkpoint was given.",
)
ERRORS = (
    "FLOPs of the attentions' at these sites. Relative L2 errors: before and after the last projection, the mean over "
    "sites; of the worst site; of the prediction, the root of the sum of squares with one site changed at a time."
)


@dataclass(frozen=True)
class Analysis:
    """A recording, and where it comes from.

    Attributes:
        found: The recording.
        facts: What else the files are to say: model, split, hardware.
    """

    found: Recording
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.facts.get("model", "denoiser"))

    def head_rows(self) -> list[dict[str, object]]:
        """A line for every site, head and timestep bucket with samples."""
        return [
            {**_place(known), "head": head, **self._levels(bucket), "samples": known.sums.samples(bucket)}
            | known.sums.row(bucket, head)
            for known in self.found.sites.values()
            for bucket in self._buckets(known)
            for head in range(known.site.heads)
        ]

    def mixer_rows(self) -> list[dict[str, object]]:
        """A line for every site, candidate and timestep bucket, and for all buckets together."""
        return [
            {**_place(known), "mixer": name, **self._levels(bucket), **_errors(known, name, bucket)}
            | {"flops": flops_of(known, name)}
            for known in self.found.sites.values()
            for name in known.names()
            for bucket in (None, *self._buckets(known))
        ]

    def sensitivity(self, path: str, bucket: int | None = None) -> float | None:
        """Relative L2 error of the prediction where a site's attention knows no difference between its keys."""
        return self.found.sites[path].errors[MEAN].prediction.relative(bucket)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        found = self.found
        return {
            "format": FORMAT,
            **self.facts,
            "size": list(found.size),
            "batches": found.batches,
            "samples": found.samples,
            "buckets": [self._levels(bucket)["levels"] for bucket in range(found.settings.buckets)],
            "settings": vars(found.settings),
            "notes": NOTES,
            "mixers": found.names,
            "baselines": list(BASELINES),
            "refused": refused(found),
            "sites": [self._site(known) for known in found.sites.values()],
        }

    def _site(self, known: SiteRecord) -> dict[str, Any]:
        buckets = range(self.found.settings.buckets)
        return {
            **_place(known),
            "heads": known.site.heads,
            "channels": known.site.channels,
            "text": known.site.text,
            "attention_flops": attention_flops(known.site, known.grid),
            "even_receptive_field": known.sums.even_field(),
            "sensitivity": [self.sensitivity(known.site.path, bucket) for bucket in buckets],
            "attention": [self._heads(known, bucket) for bucket in buckets],
            "errors": {
                name: {
                    "flops": flops_of(known, name),
                    "all": _errors(known, name, None),
                    "buckets": [_errors(known, name, bucket) for bucket in buckets],
                    "before_by_head": [
                        [known.errors[name].before.relative(bucket, head) for head in range(known.site.heads)]
                        for bucket in buckets
                    ],
                }
                for name in known.names()
            },
        }

    def _heads(self, known: SiteRecord, bucket: int) -> list[dict[str, Any]]:
        """Numbers and curves by distance of each head; nothing for a bucket without samples."""
        sums = known.sums
        if not sums.samples(bucket):
            return []
        return [
            sums.row(bucket, head)
            | {
                "mass_by_distance": sums.curve(sums.mass, bucket, head),
                "high_mass_by_distance": sums.curve(sums.high_mass, bucket, head),
                "mass_of_a_key_by_distance": sums.per_key(sums.mass, bucket, head),
                "high_mass_of_a_key_by_distance": sums.per_key(sums.high_mass, bucket, head),
            }
            for head in range(known.site.heads)
        ]

    def _buckets(self, known: SiteRecord) -> list[int]:
        return [bucket for bucket in range(self.found.settings.buckets) if known.sums.samples(bucket)]

    def _levels(self, bucket: int | None) -> dict[str, object]:
        """The noise levels of a bucket, as shares of all: 0 is no noise."""
        count = self.found.settings.buckets
        return {"levels": "all" if bucket is None else f"{bucket / count:.3g}-{(bucket + 1) / count:.3g}"}

    # -- to read -----------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """A table of the sites, and one of the candidates, of all buckets and heads together."""
        sites = self.found.sites
        lines = [
            self._site_line(known, called)
            for known, called in zip(sites.values(), short_names(list(sites)), strict=True)
        ]
        mixers = format_table([self._mixer_line(name) for name in (*self.found.names, *BASELINES)], width=WIDTH)
        notes = [fill(note, WIDTH) for note in (ERRORS, *refused(self.found))]
        return "\n".join([format_table(lines, width=WIDTH), "", mixers, *notes])

    def _site_line(self, known: SiteRecord, called: str) -> dict[str, object]:
        rows = [known.sums.row(bucket, head) for bucket in self._buckets(known) for head in range(known.site.heads)]
        shown = {"keys": "effective_keys", "field": "receptive_field", "high field": "high_receptive_field"}
        shown |= {"low freq.": "low_frequency_share", "rank": "rank", "outliers": "outlier_tokens"}
        line: dict[str, object] = {"site": called, "tokens": known.grid.tokens}
        line |= {name: _mean([row[key] for row in rows]) for name, key in shown.items()}
        line["field"] = f"{line['field']} of {known.sums.even_field()}"
        if any(each.site.text for each in self.found.sites.values()):
            line["text"] = _mean([row["text_share"] for row in rows])
        return line | {"sensitivity": _number(self.sensitivity(known.site.path))}

    def _mixer_line(self, name: str) -> dict[str, object]:
        here = [known for known in self.found.sites.values() if name in known.names()]
        before, after, squares = (
            [value for known in here if (value := read(known.errors[name])) is not None]
            for read in (lambda e: e.before.relative(), lambda e: e.after.relative(), lambda e: e.prediction.square())
        )
        cost = sum(flops_of(known, name) for known in here)
        kept = sum(attention_flops(known.site, known.grid) for known in here)
        return {
            "mixer": name,
            "sites": len(here),
            "FLOPs": f"{cost / kept:.1%}" if kept else "-",
            "before": _mean(before),
            "after": _mean(after),
            "worst": _number(max(after, default=None)),
            "prediction": _number(math.sqrt(sum(squares)) if squares else None),
        }

    def write(self, folder: Path) -> None:
        """Write ``analysis.json``, ``heads.csv`` and ``mixers.csv`` into a folder, which is made if missing."""
        write_text(folder / "analysis.json", json_text(finite(self.as_dict())))
        write_text(folder / "heads.csv", csv_text(self.head_rows()))
        write_text(folder / "mixers.csv", csv_text(self.mixer_rows()))


def flops_of(known: SiteRecord, name: str) -> int:
    """FLOPs of one image at a site with a candidate, on the grid of the first batch."""
    return mixer_flops(known.candidates[name].mixer, known.grid)


def _place(known: SiteRecord) -> dict[str, object]:
    return {"site": known.site.path, "grid": str(known.grid), "tokens": known.grid.tokens}


def _errors(known: SiteRecord, name: str, bucket: int | None) -> dict[str, float | None]:
    errors = known.errors[name]
    kinds = {"before": errors.before, "after": errors.after, "prediction": errors.prediction}
    return {kind: sums.relative(bucket) for kind, sums in kinds.items()}


def _mean(values: Sequence[Any]) -> str:
    known = [float(value) for value in values if value is not None]
    return _number(sum(known) / len(known) if known else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def finite(value: Any) -> Any:
    """Plain data in which what is not finite is null, as JSON knows no such numbers."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
