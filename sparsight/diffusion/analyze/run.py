"""One pass over batches: attention maps, errors of candidates at their sites and in the prediction.

Shape legend: B batch, N tokens, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import Grid, Site, SiteSamples
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.analyze.attention.statistics import measure
from sparsight.diffusion.analyze.attention.sums import SiteSums
from sparsight.diffusion.analyze.candidates import BASELINES, Candidate, Candidates, CandidateSite, candidate_at
from sparsight.diffusion.analyze.errors import CandidateErrors
from sparsight.diffusion.analyze.watched import Core, Pass, WatchedSite, on_grid
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.surgery.site_error import image_tokens
from sparsight.diffusion.train.capture import positions_of, samples_of_image

_log = logging.getLogger(__name__)
Noised = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is looked at.

    Args:
        buckets: How many equal parts the noise levels are cut into.
        queries: Most rows of each attention map that are looked at.
        prediction_batches: Batches on which every candidate's effect on the prediction is measured.

    Raises:
        ConfigurationError: A number is out of range.
    """

    buckets: int = 4
    queries: int = 1024
    prediction_batches: int = 2

    def __post_init__(self) -> None:
        for name, least in {"buckets": 1, "queries": 2, "prediction_batches": 0}.items():
            value = vars(self)[name]
            if value < least:
                raise ConfigurationError(f"{name} is {value}; allowed: {least} or more")


@dataclass
class SiteRecord:
    """What is known of a site; its grid is that of the first batch."""

    site: Site
    grid: Grid
    sums: SiteSums
    candidates: dict[str, Candidate]
    errors: dict[str, CandidateErrors]

    def names(self) -> list[str]:
        """Candidates that can stand here, baselines among them."""
        return [name for name, candidate in self.candidates.items() if not candidate.refusal]

    def mixers(self) -> list[str]:
        """Candidates that can stand here, of those that were asked for."""
        return [name for name in self.names() if name not in BASELINES]


@dataclass
class Recording:
    """What one pass over the batches has shown.

    Attributes:
        sites: By path, in the order of the denoiser.
        names: Of the candidates that were asked for.
        size: Sides in model space of the first batch.
        batches: How many.
        samples: How many, by bucket.
    """

    settings: Settings
    sites: dict[str, SiteRecord]
    names: list[str]
    size: tuple[int, ...] = ()
    batches: int = 0
    samples: list[int] = field(default_factory=list)


@torch.no_grad()
def record(
    denoiser: nn.Module,
    sites: Mapping[str, WatchedSite],
    batches: Iterable[Noised],
    *,
    candidates: Candidates,
    bucket_of: Callable[[Noised], Tensor],
    settings: Settings,
    on_batch: Callable[[Recording], object] = lambda found: None,
) -> Recording:
    """Watch a denoiser on batches.

    The first batch lets candidates start from the teacher, and their errors are measured on those after it; where
    there is one batch alone, on that.

    Args:
        denoiser: Inside of ``watched``.
        sites: What that gives.
        batches: With ``xt``, ``timestep`` and ``cond``; each is looked at once.
        candidates: By name, what makes a mixer for a site; see ``Candidates``.
        bucket_of: The bucket of each sample of a batch, (B,), on the CPU.
        settings: What is looked at.
        on_batch: Called after each batch with what is known by then.

    Raises:
        ConfigurationError: There are no batches.
    """
    found = Recording(settings, _records(sites, candidates, settings), list(candidates))
    found.samples = [0] * settings.buckets
    kept: Noised | None = None
    for number, batch in enumerate(batches):
        bucket_B = bucket_of(batch)
        wanted = _look_on(denoiser, sites, found, batch, bucket_B)
        for bucket in bucket_B.tolist():
            found.samples[bucket] += 1
        found.batches += 1
        if number == 0:
            found.size = tuple(batch["xt"].shape[2:])
            kept = batch
        else:
            kept = None
            if number <= settings.prediction_batches:
                _swap_in_turn(denoiser, sites, found, batch, bucket_B, wanted)
        on_batch(found)
    if not found.batches:
        raise ConfigurationError("there are no batches to analyse")
    if kept is not None:
        _log.warning("there is one batch: candidates are measured on what they started from; give more batches")
        bucket_B = bucket_of(kept)
        wanted = _look_on(denoiser, sites, found, kept, bucket_B, maps=False)
        if settings.prediction_batches:
            _swap_in_turn(denoiser, sites, found, kept, bucket_B, wanted)
    return found


def _records(
    sites: Mapping[str, WatchedSite],
    candidates: Candidates,
    settings: Settings,
) -> dict[str, SiteRecord]:
    records = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for path, watched_site in sites.items():
            site: Site = watched_site.mixer.site
            made: dict[str, Any] = {}
            for name, each in candidates.items():
                made[name] = each.get(path) if isinstance(each, Mapping) else each
            made = {name: each for name, each in made.items() if each is not None} | dict(BASELINES)
            there = {name: candidate_at(name, each, site, watched_site.plain) for name, each in made.items()}
            errors = {name: CandidateErrors.empty(settings.buckets) for name in there}
            records[path] = SiteRecord(site, site.grid, SiteSums(settings.buckets), there, errors)
    return records


def _look_on(
    denoiser: nn.Module,
    sites: Mapping[str, WatchedSite],
    found: Recording,
    batch: Noised,
    bucket_B: Tensor,
    *,
    maps: bool = True,
) -> Tensor:
    """The denoiser's prediction, while every site is looked at."""
    for path, site in sites.items():
        site.look_on = partial(_at_site, site, found.sites[path], found.settings, bucket_B, maps=maps)
    try:
        return predict(denoiser, batch["xt"], batch["timestep"], batch["cond"])
    finally:
        for site in sites.values():
            site.look_on = None


def _at_site(
    watched_site: WatchedSite, known: SiteRecord, settings: Settings, bucket_B: Tensor, seen: Pass, *, maps: bool
) -> None:
    core = seen.core
    if not sum(known.sums.mass.count):
        known.grid = core.layout.grid
    if maps:
        measured = measure(core.q, core.k, core.layout, core.scale, queries=settings.queries)
        known.sums.add(measured, core.layout.grid, bucket_B)
    waiting = [each for each in known.candidates.values() if each.mixer is not None and not each.started]
    if waiting:
        samples = [_samples(known.site, seen)]
        for candidate in waiting:
            candidate.start(watched_site.plain, samples)
        return
    for candidate in known.candidates.values():
        if candidate.student is not None:
            _compare(watched_site, known, candidate, seen, bucket_B)


def _samples(site: Site, seen: Pass) -> SiteSamples:
    core, hidden = seen.core, seen.hidden.float()
    positions = positions_of((seen.hidden, *seen.args), seen.kwargs, core.layout)
    if site.text is None:
        return SiteSamples(hidden, image_tokens(seen.output).float(), core.layout.grid, positions=positions)
    return samples_of_image(hidden, core.q, core.k, core.v, core.layout, core.scale, positions)


def _compare(site: WatchedSite, known: SiteRecord, candidate: Candidate, seen: Pass, bucket_B: Tensor) -> None:
    student = on_grid(candidate.student, site)
    try:
        output = student(seen.hidden, *seen.args, **seen.kwargs)
    except ValueError as error:
        candidate.refuse(str(error))
        return
    errors = known.errors[candidate.name]
    found, wanted = (seen.core.layout.image(image_tokens(each)) for each in (output, seen.output))
    errors.after.add(found, wanted, bucket_B)
    if isinstance(student, CandidateSite) and student.mixed is not None:
        mixed, student.mixed = student.mixed, None
        errors.before.add(_image(mixed, seen.core), _image(seen.core.output, seen.core), bucket_B, heads=True)


def _image(mixed: Tensor, core: Core) -> Tensor:
    return core.layout.split(mixed)[1]


def _swap_in_turn(
    denoiser: nn.Module,
    sites: Mapping[str, WatchedSite],
    found: Recording,
    batch: Noised,
    bucket_B: Tensor,
    wanted: Tensor,
) -> None:
    """What the prediction loses with one candidate at one site, for all of them."""
    for path, known in found.sites.items():
        for name, candidate in known.candidates.items():
            if candidate.student is not None:
                with standing_in(sites, {path: candidate}):
                    output = predict(denoiser, batch["xt"], batch["timestep"], batch["cond"])
                known.errors[name].prediction.add(output, wanted, bucket_B)


@contextmanager
def standing_in(sites: Mapping[str, WatchedSite], chosen: Mapping[str, Candidate]) -> Iterator[None]:
    """Let candidates compute at their sites."""
    for path, candidate in chosen.items():
        vars(sites[path])["stand_in"] = candidate.student  # as no submodule
    try:
        yield
    finally:
        for path in chosen:
            vars(sites[path])["stand_in"] = None


def refused(found: Recording) -> Sequence[str]:
    """In words, which candidate cannot stand where, and why; one line for each candidate and reason."""
    lines: dict[tuple[str, str], list[str]] = {}
    for path, known in found.sites.items():
        for name, candidate in known.candidates.items():
            if candidate.refusal:
                why = candidate.refusal.replace(path, "it")
                lines.setdefault((name, why), []).append(path)
    return [f"{name} cannot stand at {_few(paths)}: {why}" for (name, why), paths in lines.items()]


def _few(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
