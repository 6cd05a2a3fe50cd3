"""Delta convolution block: a gated pyramid of depthwise convolutions beside an average-pool branch.

The idea is of Dong et al., "Can We Achieve Efficient Diffusion without Self-Attention? Distilling Self-Attention into
Convolutions", arXiv 2504.21292 (ICCV 2025). The paper and the code released with it describe different blocks: every
difference is an option here, and the presets spell both out. The start from a teacher is our own.

Shape legend: B batch, N tokens (H * W), C channels of the site, E entry channels (the first G = E / 2 carry the signal,
the others their gates), F features that the exit reads, h heads, d channels of a head, K kernel side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import AttentionWeights, FeatureMixer, Grid, Site, SiteSamples
from blocks.ops.delta_conv import naive
from blocks.ops.delta_conv.choice import why_no_triton
from blocks.ops.delta_conv.form import Form, Layers, as_image, stage_size
from blocks.ops.delta_conv.torch import delta_conv, precision, weights_for
from blocks.ops.triton_here import this_machine

# SD2 has the levels of SD1.5; a level without self-attention has no entry
_SD15_KERNELS = {
    "down_blocks.0.*": 7,
    "down_blocks.1.*": 9,
    "down_blocks.2.*": 5,
    "mid_block.*": 3,
    "up_blocks.1.*": 5,
    "up_blocks.2.*": 9,
    "up_blocks.3.*": 11,
}
_SDXL_KERNELS = {
    "down_blocks.1.*": 9,
    "down_blocks.2.*": 7,
    "mid_block.*": 9,
    "up_blocks.0.*": 9,
    "up_blocks.1.*": 13,
}
_PAPER: dict[str, Any] = {
    "scales": (1 / 2, 1 / 4),
    "entry_width": "C/2n",
    "merge": "sum",
    "gate": "divide",
    "pool_branch": True,
    "depthwise_bias": True,  # not stated in the paper
}
_RELEASED: dict[str, Any] = {
    "scales": (1, 1 / 2),
    "entry_width": 0.5,
    "merge": "concat",
    "gate": "multiply",
    "pool_branch": True,
    "depthwise_bias": False,  # as of the later commits, the first one had it
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "scales": (1, 1 / 2, 1 / 4),
        "entry_width": 0.5,
        "kernel_size": 7,
        "merge": "concat",
        "gate": "sigmoid",
        "pool_branch": True,
        "depthwise_bias": True,
    },
    "paper_sd15": {**_PAPER, "kernel_size": 9},
    "paper_sdxl": {**_PAPER, "kernel_size": 13},
    "paper_pixart": {**_PAPER, "kernel_size": 13},
    "released_sd15": {**_RELEASED, "kernel_size": _SD15_KERNELS},
    "released_sdxl": {**_RELEASED, "kernel_size": _SDXL_KERNELS},
    "released_pixart": {**_RELEASED, "kernel_size": 13, "gate": "sigmoid"},
}
_GATES = ("divide", "multiply", "sigmoid")
_MERGES = ("concat", "sum")

_FIT_TOKENS = 1 << 14  # tokens that a fit holds at a time, to bound its memory
_KERNEL_RIDGE = 1e-2  # of a channel's variance
_EXIT_RIDGE = 1e-3  # of the mean square of the features
_POOL_RIDGE = 1e-1  # of the mean square of the averages; larger, since a batch holds few images
_FIRST_SLOPE = 0.1  # of gates that only a constant channel can open


class DeltaConvBlock(FeatureMixer):
    """Multi-scale gated depthwise convolutions of the hidden state, plus a linear map of its mean.

    ``entry`` reduces C to E channels. Every stage pools them to its scale, convolves each channel, multiplies one half
    by the other (the gate) and interpolates back. The stages are merged, ``exit`` maps them to C channels, and
    ``pool`` of the image's mean is added. Options left at ``None`` are taken from the preset.

    Parameters start as torch's Linear and Conv2d do (the released code starts its kernels smaller), unless
    ``init_from_teacher`` is called.

    Args:
        site: Where the mixer stands.
        preset: ``default`` (scales 1, 1/2, 1/4; width 0.5; kernel 7; concat; sigmoid; pool branch; depthwise bias),
            ``paper_*`` (1/2, 1/4; C/2n; 9 or 13; sum; divide; pool branch; depthwise bias) or ``released_*`` (1, 1/2;
            0.5; a kernel per level; concat; multiply, PixArt: sigmoid; pool branch; no depthwise bias).
        scales: Scale of each stage in (0, 1]; a side of S tokens becomes floor(S * scale), at least 1.
        entry_width: E: channels (int), a fraction of C (float), or ``C/2n`` for C / (2 * stages); made even.
        kernel_size: Side of the depthwise kernels: odd tokens (int), a fraction of the shorter side of the site's
            grid, rounded to odd (float), or either by pattern of the site's path, where the first match counts.
        merge: ``concat`` the stages in front of the exit, or ``sum`` them.
        gate: ``divide`` is a * b / sqrt(C), ``multiply`` a * b * sqrt(E / 2), ``sigmoid`` a * sigmoid(b).
        pool_branch: Whether the linear map of the mean is there.
        depthwise_bias: Whether the depthwise convolutions have a bias.
        backend: ``torch``, or ``triton``: three kernels forward that keep nothing but the entry. Their gradients
            have no gradients.

    Raises:
        ValueError: If an option is out of range, or no kernel pattern matches the site's path.
    """

    autocasts = True
    backends: ClassVar[dict[str, str]] = {
        "torch": "",
        "triton": "the package triton, and a CUDA device of compute capability 8.0 or more",
    }

    def __init__(
        self,
        site: Site,
        *,
        preset: Literal[
            "default", "paper_sd15", "paper_sdxl", "paper_pixart", "released_sd15", "released_sdxl", "released_pixart"
        ] = "default",
        scales: Sequence[float] | None = None,
        entry_width: int | float | Literal["C/2n"] | None = None,
        kernel_size: int | float | dict[str, int | float] | None = None,
        merge: Literal["concat", "sum"] | None = None,
        gate: Literal["divide", "multiply", "sigmoid"] | None = None,
        pool_branch: bool | None = None,
        depthwise_bias: bool | None = None,
        backend: Literal["torch", "triton"] = "torch",
    ) -> None:
        super().__init__(site)
        self.backend = self.checked_backend(backend)
        self._machine = this_machine() if self.backend == "triton" else None
        base = PRESETS[_one_of("preset", preset, tuple(PRESETS))]
        self.preset = preset
        self.scales = _checked_scales(base["scales"] if scales is None else scales)
        width = base["entry_width"] if entry_width is None else entry_width
        self.entry_width = _resolve_width(width, site.channels, len(self.scales))
        self.kernel_size = _resolve_kernel(base["kernel_size"] if kernel_size is None else kernel_size, site)
        self.merge = _one_of("merge", base["merge"] if merge is None else merge, _MERGES)
        self.gate = _one_of("gate", base["gate"] if gate is None else gate, _GATES)
        self.pool_branch: bool = base["pool_branch"] if pool_branch is None else pool_branch
        self.depthwise_bias: bool = base["depthwise_bias"] if depthwise_bias is None else depthwise_bias

        channels, width, kernel = site.channels, self.entry_width, self.kernel_size
        self.entry = nn.Linear(channels, width)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=self.depthwise_bias)
            for _ in self.scales
        )
        self.exit = nn.Linear(width // 2 * (len(self.scales) if self.merge == "concat" else 1), channels)
        self.pool = nn.Linear(channels, channels) if self.pool_branch else None

    def flops(self, grid: Grid) -> int:
        """Entry, depthwise, exit and pool products; pooling, interpolation, gates and sums are not counted."""
        tokens, channels, width = grid.tokens, self.site.channels, self.entry_width
        stage_tokens = sum(math.prod(stage_size(grid, scale)) for scale in self.scales)
        dense = tokens * channels * (width + self.exit.in_features)
        pool = channels**2 if self.pool_branch else 0
        return 2 * (dense + stage_tokens * self.kernel_size**2 * width + pool)

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the site's output (B, N, C)."""
        layers = self._layers(hidden_BNC, grid)
        if self.serving_backend(grid, hidden_BNC) == "triton":
            from blocks.ops.delta_conv import triton  # which defines kernels, and needs the package for it

            return triton.delta_conv(hidden_BNC, layers, self._form(), grid, precision(hidden_BNC))
        weights = weights_for(hidden_BNC, layers)
        if weights is None:
            return naive.delta_conv(hidden_BNC, layers, self._form(), grid)
        return delta_conv(hidden_BNC, weights, self._form(), grid)

    def missing_backend(self, name: str, grid: Grid, like: Tensor) -> str:
        """Why Triton's kernels cannot compute a hidden state: see ``blocks.ops.delta_conv.choice``."""
        if name != "triton":
            return ""
        machine = self._machine or this_machine()
        return why_no_triton(like, self._layers(like, grid), self._form(), grid, machine)

    def reference(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """Map the hidden state (B, N, C) to the output layer by layer; see ``blocks.ops.delta_conv.naive``."""
        return naive.delta_conv(hidden_BNC, self._layers(hidden_BNC, grid), self._form(), grid)

    def features(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """What the exit reads, (B, N, F): the gated stages, merged."""
        return naive.features(hidden_BNC, self._layers(hidden_BNC, grid), self._form(), grid)

    def _layers(self, hidden_BNC: Tensor, grid: Grid) -> Layers:
        if hidden_BNC.shape[1] != grid.tokens:
            raise ValueError(f"{hidden_BNC.shape[1]} tokens do not fill a grid of {grid.height}x{grid.width}")
        return Layers(self.entry, self.depthwise, self.exit, self.pool)

    def _form(self) -> Form:
        sigmoid = self.gate == "sigmoid"
        return Form(self.scales, sigmoid, 1.0 if sigmoid else self._gate_scale(), self.merge == "concat")

    def _gate_scale(self) -> float:
        return self.site.channels**-0.5 if self.gate == "divide" else (self.entry_width / 2) ** 0.5

    @torch.no_grad()
    def init_from_teacher(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Start as the linear multi-scale convolution that comes closest to the teacher, with constant gates.

        Three closed forms in a row: ``entry`` takes the strongest directions of each head's output; every depthwise
        kernel is fitted by least squares from a direction of the values to the same direction of what the head mixed;
        ``exit``, ``pool`` and bias solve one ridge regression on the outputs, with W_o W_v as the prior of ``pool``.
        Works for every option. Samples on other grids than the first one's count in the regression only.

        Raises:
            ValueError: If there is no sample.
        """
        if not samples:
            raise ValueError("init_from_teacher needs at least one batch of the teacher's inputs and outputs, got none")
        weights, samples = _moved(weights, samples, self.entry.weight.device)
        grid = samples[0].grid
        images = max(1, _FIT_TOKENS // grid.tokens)
        hidden_BNC = torch.cat([sample.inputs for sample in samples if sample.grid == grid])[:images]
        heads, positions = self.site.heads, samples[0].positions
        rows_EC, mixed_BNE = _head_directions(weights, hidden_BNC, heads, self.entry_width, positions)
        half = self.entry_width // 2
        self._open_gates(rows_EC, hidden_BNC.mean((0, 1)))
        value_BGHW = as_image(self.entry(hidden_BNC.to(self.entry.weight))[..., :half], grid)
        mixed_BGHW = as_image(mixed_BNE[..., :half], grid).to(value_BGHW)
        for conv, scale in zip(self._convolutions(), self.scales, strict=True):
            size = stage_size(grid, scale)
            value, mixed = F.adaptive_avg_pool2d(value_BGHW, size), F.adaptive_avg_pool2d(mixed_BGHW, size)
            conv.weight[:half, 0] = _fitted_kernels(value, mixed, self.kernel_size).to(conv.weight)
        self._solve_exit(weights, samples)

    def _convolutions(self) -> list[nn.Conv2d]:
        return [conv for conv in self.depthwise if isinstance(conv, nn.Conv2d)]

    def _open_gates(self, rows_EC: Tensor, mean_C: Tensor) -> None:
        """Set the entry, centred so that zero padding means the average, and let every gate start as a constant."""
        half = self.entry_width // 2
        opened = 0.0 if self.gate == "sigmoid" else 1 / self._gate_scale()
        rows_EC, constant_E = rows_EC.clone(), torch.zeros_like(rows_EC[:, 0])
        for conv in self._convolutions():
            conv.weight.zero_()
            if conv.bias is not None:
                conv.bias.zero_()
                conv.bias[half:] = opened
            else:
                conv.weight[half:, 0, self.kernel_size // 2, self.kernel_size // 2] = opened
        if self.gate != "sigmoid" and not self.depthwise_bias:
            rows_EC[half:] *= _FIRST_SLOPE
            constant_E[half:] = 1
        self.entry.weight.copy_(rows_EC)
        self.entry.bias.copy_(constant_E - rows_EC @ mean_C)

    def _solve_exit(self, weights: AttentionWeights, samples: Sequence[SiteSamples]) -> None:
        """Ridge regression in float64 of exit, pool and bias on what the pool branch's prior leaves over."""
        channels, features = self.site.channels, self.exit.in_features
        averages = channels if self.pool is not None else 0
        prior_CC, bias_C = _uniform_attention(weights)
        if self.pool is None:
            prior_CC = torch.zeros_like(prior_CC)
        size = features + averages + 1
        gram, target = bias_C.new_zeros(size, size), bias_C.new_zeros(size, channels)
        for hidden_BNC, output_BNC, grid in _chunks(samples):
            mean_B1C = hidden_BNC.double().mean(1, keepdim=True)
            left_BNC = output_BNC.double() - (mean_B1C @ prior_CC.T + bias_C)
            parts = [self.features(hidden_BNC.to(self.entry.weight), grid).double()]
            parts += [mean_B1C.expand_as(left_BNC)] if averages else []
            columns = torch.cat([*parts, torch.ones_like(left_BNC[..., :1])], -1).flatten(0, 1)
            gram += columns.T @ columns
            target += columns.T @ left_BNC.flatten(0, 1)
        ridge = torch.zeros_like(gram[0])
        ridge[:features] = _EXIT_RIDGE * gram.diagonal()[:features].mean()
        if averages:
            ridge[features:-1] = _POOL_RIDGE * gram.diagonal()[features:-1].mean()
        solution = torch.linalg.solve(gram + ridge.clamp(min=1e-9).diag(), target)
        self.exit.weight.copy_(solution[:features].T)
        self.exit.bias.copy_(solution[-1] + bias_C)
        if self.pool is not None:
            self.pool.weight.copy_(prior_CC + solution[features:-1].T)
            self.pool.bias.zero_()


def _head_directions(
    weights: AttentionWeights, hidden_BNC: Tensor, heads: int, count: int, positions: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Directions in which heads write most, strongest first: rows (E, C) that read them, and the mixed values there.

    The principal axes of each head's output over positions, ranked over all heads; repeated when there are too few.
    """
    q, k, v = weights.projected(hidden_BNC, heads, positions)
    core_BhNd = F.scaled_dot_product_attention(q, k, v, scale=weights.scale)
    core_BhNd = core_BhNd - core_BhNd.mean(2, keepdim=True)
    out_hCd = weights.out.unflatten(1, (heads, -1)).transpose(0, 1)
    factor_hdd = torch.linalg.qr(out_hCd.double()).R
    cov_hdd = torch.einsum("bhnd,bhne->hde", core_BhNd, core_BhNd).double() / core_BhNd[:, 0, :, 0].numel()
    energy_hd, axes_hdd = torch.linalg.eigh(factor_hdd @ cov_hdd @ factor_hdd.mT)
    axes_hdd = (axes_hdd.mT @ factor_hdd).to(v)
    rows = (axes_hdd @ weights.value.unflatten(0, (heads, -1))).flatten(0, 1)
    norm = rows.norm(dim=1).clamp(min=1e-6)
    mixed = torch.einsum("hed,bhnd->bnhe", axes_hdd, core_BhNd).flatten(2)
    order = energy_hd.flatten().argsort(descending=True)
    order = order[torch.arange(count, device=order.device) % len(order)]
    return rows[order] / norm[order, None], mixed[..., order] / norm[order]


def _fitted_kernels(value_BGHW: Tensor, mixed_BGHW: Tensor, side: int) -> Tensor:
    """Kernels (G, K, K) that predict ``mixed`` from ``value`` with least squares, channel by channel."""
    kernels = []
    for value, mixed in zip(value_BGHW.unbind(1), mixed_BGHW.unbind(1), strict=True):  # one by one, for memory
        patches = F.unfold(value.double()[:, None], side, padding=side // 2).transpose(0, 1).flatten(1)
        gram = patches @ patches.T
        ridge = (_KERNEL_RIDGE * gram.diagonal().max()).clamp(min=1e-9) * torch.eye(side**2).to(gram)
        kernels.append(torch.linalg.solve(gram + ridge, patches @ mixed.double().flatten()))
    return torch.stack(kernels).unflatten(1, (side, side))


def _uniform_attention(weights: AttentionWeights) -> tuple[Tensor, Tensor]:
    """The affine map of the mean that attention becomes when every token attends to all alike, in float64."""
    matrix_CC = weights.out.double() @ weights.value.double()
    bias_C = torch.zeros_like(matrix_CC[:, 0])
    if weights.value_bias is not None:
        bias_C = bias_C + weights.out.double() @ weights.value_bias.double()
    if weights.out_bias is not None:
        bias_C = bias_C + weights.out_bias.double()
    return matrix_CC, bias_C


def _moved(
    weights: AttentionWeights, samples: Sequence[SiteSamples], device: torch.device
) -> tuple[AttentionWeights, list[SiteSamples]]:
    """Weights and samples on one device in float32."""
    fields: dict[str, Any] = dict(vars(weights))
    fields |= {name: t.to(device, torch.float32) for name, t in fields.items() if isinstance(t, Tensor)}
    moved = [
        SiteSamples(s.inputs.to(device).float(), s.outputs.to(device).float(), s.grid, positions=s.positions)
        for s in samples
    ]
    return AttentionWeights(**fields), moved


def _chunks(samples: Sequence[SiteSamples]) -> Iterator[tuple[Tensor, Tensor, Grid]]:
    """Inputs, outputs and grid of a few images at a time."""
    for sample in samples:
        images = max(1, _FIT_TOKENS // sample.grid.tokens)
        for inputs, outputs in zip(sample.inputs.split(images), sample.outputs.split(images), strict=True):
            yield inputs, outputs, sample.grid


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(allowed)}; got {value!r}")
    return value


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise ValueError(f"scales are one or more numbers in (0, 1], e.g. [1, 0.5]; got {list(scales)!r}")
    return tuple(scales)


def _resolve_width(width: int | float | str, channels: int, stages: int) -> int:
    """Entry channels: even, at least 2, at most C."""
    if isinstance(width, str):
        _one_of("entry_width", width, ("C/2n",))
        count = channels // (2 * stages)
    else:
        count = int(width * channels + 1e-6) if isinstance(width, float) else width
        if width <= 0 or count > channels:
            raise ValueError(f"entry_width is 2 to {channels} channels, a fraction up to 1.0 or 'C/2n'; got {width!r}")
    return max(2, count - count % 2)


def _resolve_kernel(kernel: int | float | dict[str, int | float], site: Site) -> int:
    """Odd kernel side in tokens."""
    size = _first_match(kernel, site.path) if isinstance(kernel, dict) else kernel
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise ValueError(f"a kernel_size with a decimal point is a fraction of the grid, up to 1.0; got {size}")
        size = 2 * int(size * min(site.grid.height, site.grid.width) / 2) + 1
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel_size in tokens is odd and positive; got {size}")
    return size


def _first_match(table: dict[str, int | float], path: str) -> int | float:
    """Entry of the first pattern that matches the path."""
    for pattern, size in table.items():
        if fnmatchcase(path, pattern):
            return size
    raise ValueError(
        f"no kernel_size for site {path!r}, only for {', '.join(table)}; "
        "add a pattern ('*' matches all), or choose one number or another preset"
    )
