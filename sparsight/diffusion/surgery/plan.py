"""Which mixer stands at which site: an ordered list of entries, of which the first that matches a site counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from blocks.base import Site, TokenMixer
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.surgery.sites import SiteSelection

MixerFactory = Callable[[Site], TokenMixer]


@dataclass(frozen=True)
class PlanEntry:
    """What stands at some of the sites.

    Args:
        sites: A pattern of their paths (``fnmatch``), a list of patterns, or include, exclude, tokens and predicate.
        mixer: What replaces self-attention there; ``null`` keeps it.
    """

    sites: str | Sequence[str] | SiteSelection
    mixer: Callable[[Site], TokenMixer] | None

    @property
    def selection(self) -> SiteSelection:
        """The sites in their long form."""
        if isinstance(self.sites, SiteSelection):
            return self.sites
        return SiteSelection(include=[self.sites] if isinstance(self.sites, str) else self.sites)


def plan_from(
    *, mixer: MixerFactory | None, sites: SiteSelection | None, plan: Sequence[PlanEntry] | None
) -> list[PlanEntry]:
    """The plan that a configuration means: its own, or the one entry of its mixer.

    Raises:
        ConfigurationError: Both are given, or neither.
    """
    if plan is None:
        if mixer is None:
            raise ConfigurationError("mixer is missing: name a token mixer, or give a plan of several")
        return [PlanEntry(sites or SiteSelection(), mixer)]
    for name, value in {"mixer": mixer, "sites": sites}.items():
        if value is not None:
            raise ConfigurationError(f"plan and {name} are both given: set {name} to null, or leave the plan out")
    return list(plan)


def assign(plan: Sequence[PlanEntry], sites: Sequence[Site]) -> list[tuple[Site, MixerFactory]]:
    """The sites that get a mixer, in the order of the denoiser, each with what makes it; others keep attention.

    Raises:
        ConfigurationError: An entry matches no site, or only sites of earlier entries, or no entry has a mixer.
    """
    if all(entry.mixer is None for entry in plan):
        told = f"all of its {len(plan)} entries keep attention" if plan else "it has no entries"
        raise ConfigurationError(f"plan replaces nothing, as {told}: give an entry a mixer")
    taken: dict[str, int] = {}
    for number, entry in enumerate(plan):
        matched = [site.path for site in _chosen(entry, sites, f"plan.{number}.sites: " if len(plan) > 1 else "")]
        free = [path for path in matched if path not in taken]
        if not free:
            earlier = _listed(f"plan.{each}" for each in sorted({taken[path] for path in matched}))
            raise ConfigurationError(
                f"plan.{number} is never reached: {earlier}, which stands before it and counts first, has all that it "
                f"matches ({_listed(matched)}); put it before, or leave it out"
            )
        taken |= dict.fromkeys(free, number)
    factories = ((site, plan[taken[site.path]].mixer) for site in sites if site.path in taken)
    return [(site, factory) for site, factory in factories if factory is not None]


def _chosen(entry: PlanEntry, sites: Sequence[Site], key: str) -> list[Site]:
    try:
        return entry.selection.choose(sites)
    except ValueError as error:
        raise ConfigurationError(f"{key}{error}") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
