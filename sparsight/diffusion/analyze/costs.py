"""What attention and candidates cost at every site: FLOPs by formula, or seconds that were measured.

Shape legend: B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsight.common.errors import ConfigurationError
from sparsight.common.measure.latency import Call, TooSlow, time_in_turn
from sparsight.diffusion.analyze.run import Noised, Recording, SiteRecord
from sparsight.diffusion.analyze.watched import Pass, WatchedSite, on_grid
from sparsight.diffusion.measure.flops import attention_flops, count_flops, mixer_flops
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.surgery.sites import meta_twin

ATTENTION = "attention"
RUNS, MAX_SECONDS = 15, 20.0
BudgetOf = Literal["flops", "latency", "processor"]
CALLED = {"flops": "FLOPs", "latency": "time", "processor": "processor time"}
"""What a budget is of, in words."""


@dataclass(frozen=True)
class Costs:
    """Of one image at the size of the first batch, in FLOPs or seconds.

    Attributes:
        whole: Of the untouched denoiser.
        sites: By path and candidate, ``ATTENTION`` among them.
    """

    whole: float
    sites: dict[str, dict[str, float]]

    @property
    def around(self) -> float:
        """Of all but the self-attentions."""
        return max(0.0, self.whole - sum(site[ATTENTION] for site in self.sites.values()))

    @property
    def least(self) -> float:
        """Of the denoiser with the cheapest choice at every site, over that of the untouched one."""
        return (self.around + sum(min(site.values()) for site in self.sites.values())) / self.whole

    def of(self, chosen: Mapping[str, str]) -> float:
        """Of the denoiser with these candidates at their sites, over that of the untouched one."""
        sites = sum(site[chosen.get(path, ATTENTION)] for path, site in self.sites.items())
        return (self.around + sites) / self.whole


def flops_costs(denoiser: nn.Module, found: Recording) -> Costs:
    """By the formulas of attentions and mixers; the untouched denoiser's are counted by torch."""
    sites = {
        path: {ATTENTION: float(attention_flops(known.site, known.grid))}
        | {name: float(mixer_flops(known.candidates[name].mixer, known.grid)) for name in known.mixers()}
        for path, known in found.sites.items()
    }
    return Costs(float(count_flops(meta_twin(denoiser), size=found.size)), sites)


@torch.no_grad()
def latency_costs(
    denoiser: nn.Module,
    sites: Mapping[str, WatchedSite],
    found: Recording,
    batch: Noised,
    device: torch.device,
    *,
    processor: bool = False,
) -> Costs:
    """By the clock on the wall, one sample at a time: medians of runs in turn, once for sites that are alike.

    Args:
        denoiser: Inside of ``watched``.
        sites: What that gives.
        found: Candidates.
        batch: Its first sample is what is computed.
        device: Where.
        processor: Count processor time, of all threads, on a CPU: others on the machine move it less.

    Raises:
        ConfigurationError: Processor time is asked for where something else computes.
    """
    if processor and device.type != "cpu":
        raise ConfigurationError(f"budget_of: processor tells nothing of work on {device.type}: use latency, or a CPU")
    medians = partial(_medians, device=device, processor=processor)
    one = _first(dict(batch), len(batch["xt"]))

    def whole() -> Tensor:
        return predict(denoiser, one["xt"], one["timestep"], one["cond"])

    kinds: dict[str, tuple[str, Pass]] = {}
    for path, site in sites.items():
        site.look_on = _keeping(kinds, path, _kind(found.sites[path]))
    whole()
    for site in sites.values():
        site.look_on = None
    measured: dict[str, dict[str, float]] = {}
    for kind, (path, seen) in kinds.items():
        known, site = found.sites[path], sites[path]
        calls = {ATTENTION: _call(site.plain, seen)}
        calls |= {name: _call(on_grid(known.candidates[name].student, site), seen) for name in known.mixers()}
        measured[kind] = medians(calls)
    by_path = {path: measured[_kind(known)] for path, known in found.sites.items()}
    return Costs(medians({"whole": whole})["whole"], by_path)


def _medians(calls: Mapping[str, Call], *, device: torch.device, processor: bool) -> dict[str, float]:
    timed = time_in_turn(calls, device=device, runs=RUNS, max_seconds=MAX_SECONDS, processor=processor)
    return {name: each.seconds if isinstance(each, TooSlow) else each.median for name, each in timed.items()}


def _call(module: Any, seen: Pass) -> Call:
    return lambda: module(seen.hidden, *seen.args, **seen.kwargs)


def _keeping(kinds: dict[str, tuple[str, Pass]], path: str, kind: str) -> Any:
    return lambda seen: kinds.setdefault(kind, (path, seen))


def _kind(known: SiteRecord) -> str:
    """Equal for sites at which everything costs alike."""
    site = known.site
    options = {name: known.candidates[name].mixer.options for name in known.mixers()}
    return repr((site.channels, site.heads, site.head_dim, site.text, known.grid, options))


def _first(value: Any, batch: int) -> Any:
    """The first sample of tensors (B, ...), at any depth."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[:1]
    if isinstance(value, dict):
        return {key: _first(item, batch) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_first(item, batch) for item in value)
    return value
