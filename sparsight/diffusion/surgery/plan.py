"""Which mixer stands at which site: an ordered list of entries, of which the first that matches a site counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blocks.base import Site, TokenMixer
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import did_you_mean
from sparsight.diffusion.surgery.sites import SiteSelection

MixerFactory = Callable[[Site], TokenMixer]
SITES = 'a pattern ("*" for all), a list of patterns, or include, exclude, min_tokens, max_tokens and predicate'
MIXER = "a class by class_path and init_args"
KEEP = "`mixer: null` to keep attention"
CLASS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class PlanEntry:
    """What stands at some of the sites.

    Args:
        sites: A pattern of their paths (``fnmatch``), a list of patterns, or include, exclude, tokens and predicate.
        mixer: What replaces self-attention there; ``null`` keeps it.

    Raises:
        ConfigurationError: Either can be no such thing.
    """

    sites: str | Sequence[str] | SiteSelection
    mixer: Callable[[Site], TokenMixer] | None

    def __post_init__(self) -> None:
        if not isinstance(self.sites, str | Sequence | SiteSelection):
            raise ConfigurationError(f"sites of a plan's entry are {self.sites!r}: give {SITES}")
        if self.mixer is not None and not callable(self.mixer):
            raise ConfigurationError(
                f"mixer of a plan's entry is {self.mixer!r}: give what makes it for a site, or None to keep attention"
            )

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
        ConfigurationError: Both are given, or neither; the plan holds something else than entries, or replaces nothing.
    """
    if plan is None:
        if mixer is None:
            raise ConfigurationError("mixer is missing: name a token mixer, or give a plan of several")
        return [PlanEntry(sites or SiteSelection(), mixer)]
    for name, value in {"mixer": mixer, "sites": sites}.items():
        if value is not None:
            raise ConfigurationError(f"plan and {name} are both given: set {name} to null, or leave the plan out")
    for position, entry in enumerate(plan):
        if not isinstance(entry, PlanEntry):
            raise ConfigurationError(f"plan.{position} is {entry!r}, not a PlanEntry of sites and mixer")
    if all(entry.mixer is None for entry in plan):
        told = f"all of its {len(plan)} entries keep attention" if plan else "it has no entries"
        raise ConfigurationError(f"plan replaces nothing, as {told}: give an entry a mixer")
    return list(plan)


def check_entry(entry: Any, key: str, source: str = "") -> None:
    """See that an entry, as plain data, says both which sites it is about and what stands there.

    Args:
        entry: As read from YAML.
        key: Of the entry.
        source: Where it stands, in words that follow the key.

    Raises:
        ConfigurationError: A key is missing, unknown, or holds what can be no sites or no mixer.
    """
    known = {"sites": SITES, "mixer": f"{MIXER}, or write {KEEP}"}
    if not isinstance(entry, Mapping):
        raise ConfigurationError(f"{key} is {entry!r}{source}: an entry is a mapping of sites and mixer")
    for name in entry:
        if name not in known:
            close = did_you_mean(str(name), list(known))
            raise ConfigurationError(f"{key}.{name}{source}: an entry has sites and mixer, and no such option{close}")
    for name, meant in known.items():
        if name not in entry:
            raise ConfigurationError(f"{key}.{name} is missing{source}: give {meant}")
    sites = entry["sites"]
    patterns = [sites] if isinstance(sites, str) else sites
    if not patterns or not (isinstance(sites, Mapping) or _are_texts(patterns)):
        raise ConfigurationError(f"{key}.sites is {sites!r}{source}: give {SITES}")
    _check_class(entry["mixer"], f"{key}.mixer", source)


def _are_texts(patterns: Any) -> bool:
    return isinstance(patterns, list) and all(isinstance(each, str) and each for each in patterns)


def _check_class(mixer: Any, key: str, source: str) -> None:
    if mixer is None or (isinstance(mixer, str) and mixer):
        return
    if not (isinstance(mixer, Mapping) and isinstance(mixer.get("class_path"), str) and mixer["class_path"]):
        raise ConfigurationError(f"{key} is {mixer!r}{source}: give {MIXER}, or write {KEEP}")
    for name in mixer:
        if name not in CLASS:
            raise ConfigurationError(f"{key}.{name}{source}: there is no such option{did_you_mean(str(name), CLASS)}")


def assign(plan: Sequence[PlanEntry], sites: Sequence[Site]) -> list[tuple[Site, MixerFactory]]:
    """The sites that get a mixer, in the order of the denoiser, each with what makes it; others keep attention.

    Raises:
        ConfigurationError: An entry matches no site, or only sites of earlier entries.
    """
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
