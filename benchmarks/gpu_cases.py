"""What `benchmarks.gpu_table` runs: mixers at a site's shape, depthwise stages alone, whole denoisers.

Shape legend: B batch, N tokens, C channels of a site, E entry channels of a DeltaConvBlock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from blocks import DeltaConvBlock, Grid, LinearAttention, NeighborhoodAttention, Site, TokenMixer
from sparsight.diffusion.families.known import example_inputs, published
from sparsight.diffusion.measure import candidates
from sparsight.diffusion.measure.flops import attention_flops, count_flops, mixer_flops
from sparsight.diffusion.measure.verify import Verdict, verify
from sparsight.diffusion.surgery.plan import MixerFactory
from sparsight.diffusion.surgery.replace import finalize, make_student, replace
from sparsight.diffusion.surgery.sites import find_sites, probe_grids, students

PIXELS_PER_LATENT = 8  # of the autoencoders of all models here
ATTENTION = "attention (SDPA)"
LAYER, STAGES, WHOLE = "layer", "all stages", "whole denoiser"
DENSE_LIMIT = 16384  # tokens up to which a mask of N x N is affordable


@dataclass(frozen=True)
class Model:
    """A denoiser at whose shapes is measured.

    Args:
        build: Makes it, with random weights, on torch's default device.
        preset: What the names of its DeltaConvBlock presets end with.
        branch_dim: Width of the branches of linear attention, as LinFusion chose it for this model.
    """

    build: Callable[[], Any]
    preset: str
    branch_dim: float

    def mixers(self) -> dict[str, MixerFactory]:
        """What stands in for attention at every site."""
        presets: dict[str, Any] = {
            "delta default": "default",
            "delta paper": f"paper_{self.preset}",
            "delta released": f"released_{self.preset}",
        }
        found: dict[str, MixerFactory] = {n: partial(DeltaConvBlock, preset=p) for n, p in presets.items()}
        return found | {"linear attention": partial(LinearAttention, branch_dim=self.branch_dim)}


MODELS = {
    "sd15": Model(partial(published, "sd15"), "sd15", 1.0),
    "sdxl": Model(partial(published, "sdxl"), "sdxl", 1 / 16),
    "pixart_sigma": Model(partial(published, "pixart_sigma"), "pixart", 1.0),
}


@dataclass(frozen=True)
class Case:
    """A candidate that is ready to run.

    Attributes:
        candidate: Its name.
        part: What of it: ``LAYER``, ``STAGES``, one convolution, or ``WHOLE``.
        call: Computes the output.
        compiled: The modules that `torch.compile` is applied to.
        weights: Parameters that are read.
        inputs: Tensors that are read.
        outputs: Elements that are written.
        flops: Of the forward pass.
        verified: What the mixer was compared with.
        refusal: Why it must not be timed.
    """

    candidate: str
    part: str
    call: Callable[[], Tensor]
    compiled: Sequence[nn.Module]
    weights: Sequence[Tensor]
    inputs: Sequence[Tensor]
    outputs: int
    flops: int
    verified: str = ""
    refusal: str = ""

    @property
    def name(self) -> str:
        """Candidate and part."""
        return f"{self.candidate}, {self.part}"


class Stages(nn.Module):
    """What a DeltaConvBlock does between entry and exit: pool, convolve, gate, interpolate, merge."""

    def __init__(self, mixer: DeltaConvBlock, grid: Grid) -> None:
        super().__init__()
        self.mixer = copy.deepcopy(mixer)
        for name in ("entry", "exit", "pool"):
            setattr(self.mixer, name, nn.Identity())
        self.grid = grid

    def forward(self, entry_BNE: Tensor) -> Tensor:
        """(B, N, E) to (B, N, E / 2 times the number of stages, or E / 2 where they are summed)."""
        return self.mixer.features(entry_BNE, self.grid)

    @torch.no_grad()
    def convolution_inputs(self, entry_BNE: Tensor) -> list[Tensor]:
        """What the depthwise convolutions get, (B, E, H, W), in the memory format that they get it in."""
        seen: list[Tensor] = []
        hooks = [
            convolution.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            for convolution in self.mixer.depthwise
        ]
        self(entry_BNE)
        for hook in hooks:
            hook.remove()
        return [map_BEHW.detach().requires_grad_() for map_BEHW in seen]


class Workshop:
    """Makes the cases of one model, for one device, precision and batch size."""

    def __init__(self, model: Model, *, device: torch.device, dtype: torch.dtype, batch: int) -> None:
        self.model, self.device, self.dtype, self.batch = model, device, dtype, batch
        with torch.device("meta"):
            self.meta = model.build()
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    @cached_property
    def kinds(self) -> list[list[Site]]:
        """Sites of equal shape together."""
        kinds: dict[tuple[object, ...], list[Site]] = {}
        for site in find_sites(self.meta):
            kinds.setdefault((site.channels, site.heads, site.head_dim, site.grid), []).append(site)
        return list(kinds.values())

    def grids(self, pixels: int) -> dict[str, Grid]:
        """Grids of all sites for square images."""
        return probe_grids(self.meta, _latent(pixels))

    def distinct_mixers(self, sites: Sequence[Site]) -> dict[str, TokenMixer]:
        """Mixers by name, one for every setting that sites of one kind have; presets choose kernels by the path."""
        found: dict[str, TokenMixer] = {}
        for name, factory in self.model.mixers().items():
            for site in sites:
                with torch.device("meta"):
                    kernel = getattr(factory(site), "kernel_size", None)
                label = name if kernel is None else f"{name}, kernel {kernel}"
                if label not in found:
                    found[label] = self._made(factory, site)
        return found

    def layer_cases(self, sites: Sequence[Site], grid: Grid) -> list[Case]:
        """Attention and every mixer at sites of one kind."""
        site = sites[0]
        attention = candidates.ready(candidates.attention_like(self.meta, site.path), self.device, self.dtype)
        hidden_BNC = self._random(grid.tokens, site.channels)
        cases = [self._layer(ATTENTION, attention, hidden_BNC, attention_flops(site, grid))]
        mixers = self.distinct_mixers(sites) | {"neighbourhood attention": NeighborhoodAttention(site)}
        for name, mixer in mixers.items():
            student = make_student(attention, mixer).eval()
            student.grid = grid
            verdict = self._verdict(name, mixer)
            refusal = verdict.refusal
            if isinstance(mixer, NeighborhoodAttention) and grid.tokens > DENSE_LIMIT:
                refusal = f"reference form with a mask of N x N, not run above {DENSE_LIMIT} tokens"
            flops = mixer_flops(mixer, grid)
            cases.append(self._layer(name, student, hidden_BNC, flops, verified=verdict.against, refusal=refusal))
        return cases

    def depthwise_cases(self, sites: Sequence[Site], grid: Grid) -> list[Case]:
        """The stages of every DeltaConvBlock at sites of one kind, and each of their depthwise convolutions."""
        cases = []
        for name, mixer in self.distinct_mixers(sites).items():
            if isinstance(mixer, DeltaConvBlock):
                cases += self._depthwise(name, mixer, grid)
        return cases

    def denoisers(self) -> dict[str, nn.Module]:
        """The untouched denoiser, and one with all sites replaced by each mixer; all share what was not replaced."""
        with self._defaults():
            untouched = self.model.build().eval().requires_grad_(False)
        found = {ATTENTION: untouched}
        for name, mixer in self.model.mixers().items():
            shared = {id(tensor): tensor for tensor in (*untouched.parameters(), *untouched.buffers())}
            found[name] = copy.deepcopy(untouched, shared)
            replace(found[name], partial(self._made, mixer))
            finalize(found[name])
        return found

    def denoiser_cases(self, denoisers: dict[str, Any], pixels: int) -> list[Case]:
        """Whole denoisers on square images."""
        size, grids = _latent(pixels), self.grids(pixels)
        sample = example_inputs(self.meta, batch=self.batch, size=size, device=self.device, dtype=self.dtype)
        untouched = count_flops(self.meta, size=size, batch=self.batch)
        cases = []
        for name, denoiser in denoisers.items():
            mixers = {path: student.mixer for path, student in students(denoiser).items()}
            change = sum(
                mixer_flops(m, grids[path]) - attention_flops(m.site, grids[path]) for path, m in mixers.items()
            )
            firsts = [mixers[sites[0].path] for sites in self.kinds if mixers]
            verdicts = [self._verdict(name, mixer) for mixer in firsts]
            cases.append(
                Case(
                    candidate=name,
                    part=WHOLE,
                    call=lambda denoiser=denoiser: denoiser(**sample, return_dict=False)[0],  # type: ignore[misc]
                    compiled=[m for m in denoiser.modules() if isinstance(m, BasicTransformerBlock)],
                    weights=list(denoiser.parameters()),
                    inputs=[value for value in sample.values() if isinstance(value, Tensor)],
                    outputs=self.batch * denoiser.config.out_channels * size[0] * size[1],
                    flops=untouched + self.batch * change,
                    verified=" / ".join(sorted({verdict.against for verdict in verdicts})),
                    refusal=next((verdict.refusal for verdict in verdicts if verdict.refusal), ""),
                )
            )
        return cases

    def _layer(self, name: str, module: nn.Module, hidden_BNC: Tensor, flops: int, **notes: str) -> Case:
        return Case(
            candidate=name,
            part=LAYER,
            call=lambda: module(hidden_BNC),
            compiled=[module],
            weights=[p.requires_grad_() for p in module.parameters()],
            inputs=[hidden_BNC],
            outputs=hidden_BNC.numel(),
            flops=self.batch * flops,
            **notes,
        )

    def _depthwise(self, name: str, mixer: DeltaConvBlock, grid: Grid) -> list[Case]:
        stages = Stages(mixer, grid)
        entry_BNE = self._random(grid.tokens, mixer.entry_width)
        merged = len(mixer.scales) if mixer.merge == "concat" else 1
        verdict, cases = self._verdict(name, mixer), list[Case]()
        triples = zip(stages.mixer.depthwise, mixer.scales, stages.convolution_inputs(entry_BNE), strict=True)
        for convolution, scale, map_BEHW in triples:
            cases.append(
                Case(
                    candidate=name,
                    part=f"convolution at {scale:g}",
                    call=partial(convolution, map_BEHW),
                    compiled=[convolution],
                    weights=list(convolution.parameters()),
                    inputs=[map_BEHW],
                    outputs=map_BEHW.numel(),
                    flops=2 * mixer.kernel_size**2 * map_BEHW.numel(),
                    verified=verdict.against,
                    refusal=verdict.refusal,
                )
            )
        together = Case(
            candidate=name,
            part=STAGES,
            call=lambda: stages(entry_BNE),
            compiled=[stages],
            weights=list(stages.parameters()),
            inputs=[entry_BNE],
            outputs=entry_BNE.numel() // 2 * merged,
            flops=sum(case.flops for case in cases),
            verified=verdict.against,
            refusal=verdict.refusal,
        )
        return [together, *cases]

    def _verdict(self, name: str, mixer: TokenMixer) -> Verdict:
        key = (name, mixer.site.path)
        if key not in self._verdicts:
            self._verdicts[key] = verify(mixer, dtype=self.dtype, device=self.device)
        return self._verdicts[key]

    def _made(self, factory: MixerFactory, site: Site) -> TokenMixer:
        with self._defaults():
            return factory(site)

    @contextmanager
    def _defaults(self) -> Iterator[None]:
        """Make modules in their precision where they will stay: faster than to convert and move large ones."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                yield
        finally:
            torch.set_default_dtype(before)

    def _random(self, tokens: int, channels: int) -> Tensor:
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        return torch.randn(self.batch, tokens, channels, requires_grad=True, **options)


def _latent(pixels: int) -> tuple[int, int]:
    return pixels // PIXELS_PER_LATENT, pixels // PIXELS_PER_LATENT
