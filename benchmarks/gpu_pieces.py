"""The measurements that ``benchmarks.gpu_run`` is made of; each gives rows of plain data.

Shape legend: B batch, N tokens, C channels of a site, E entry channels of a DeltaConvBlock.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from blocks import DeltaConvBlock, FeatureMixer, Grid, LinearAttention, Site
from sparsight.common.measure.latency import TooSlow, time_in_turn
from sparsight.common.measure.roofline import least_work
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.measure.candidates import passes
from sparsight.diffusion.surgery.replace import finalize, replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.testing import relative_l2

Rows = list[dict[str, Any]]
Call = Callable[[], Any]
PIXELS_PER_LATENT = 8  # of the autoencoders of all models here
FREE, ATTENTION = "mixer free of cost", "attention (SDPA)"


@dataclass(frozen=True)
class Bench:
    """Where and how everything is measured.

    Attributes:
        device: Of all tensors.
        dtype: Of all weights but those that are trained.
        batch: Images B.
        runs: Timed runs of a candidate.
        seconds: Time for all of them.
        backend: Of ``torch.compile``.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int = 2
    runs: int = 30
    seconds: float = 3.0
    backend: str = "inductor"

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=grad)

    def times(self, calls: Mapping[str, Call]) -> dict[str, dict[str, Any]]:
        """Median seconds of every call, taken in turn, or why one cannot run."""
        found: dict[str, dict[str, Any]] = {}
        able: dict[str, Call] = {}
        for name, call in calls.items():
            try:
                call()
                able[name] = call
            except (RuntimeError, NotImplementedError, ValueError) as error:
                found[name] = {"skipped": (str(error).splitlines() or [type(error).__name__])[0]}
        timed = time_in_turn(able, device=self.device, runs=self.runs, max_seconds=self.seconds)
        for name, timing in timed.items():
            slow = isinstance(timing, TooSlow)
            found[name] = {"skipped": "too slow"} if slow else {"seconds": timing.median, "runs": timing.runs}  # type: ignore[union-attr]
        return found


class Free(FeatureMixer):
    """Gives what it got: what a denoiser costs without any mixing of tokens."""

    def flops(self, grid: Grid) -> int:
        """None."""
        return 0

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        """The hidden state."""
        return hidden_BNC


def site_of(channels: int, grid: Grid, heads: int = 2) -> Site:
    """A site of so many channels."""
    return Site("transformer_blocks.0.attn1", channels=channels, heads=heads, head_dim=channels // heads, grid=grid)


def kernels(
    bench: Bench, cases: Mapping[str, tuple[dict[str, Any], Grid]], dtype: torch.dtype, *, channels: int
) -> Rows:
    """Errors of the delta convolution's Triton kernels against float64, beside those of the calls of torch."""
    rows = []
    for name, (options, grid) in cases.items():
        torch.manual_seed(0)
        mixer = DeltaConvBlock(site_of(channels, grid), backend="triton", **options).to(bench.device, dtype)
        hidden = torch.randn(bench.batch, grid.tokens, channels, device=bench.device, dtype=dtype)
        exact = copy.deepcopy(mixer).double()
        wanted = _with_gradients(exact.reference, exact, hidden.double(), grid)
        row: dict[str, Any] = {"case": name, "grid": str(grid), "dtype": str(dtype).removeprefix("torch.")}
        for backend, call in (("triton", mixer), ("torch", mixer.reference)):
            found = _with_gradients(call, mixer, hidden, grid)
            errors = [relative_l2(one, other) for one, other in zip(found, wanted, strict=True)]
            row |= {f"{backend} output": errors[0], f"{backend} worst gradient": max(errors[1:])}
        row["computed with"] = mixer.serving_backend(grid, hidden)
        limit = 1e-5 if dtype == torch.float32 else 1e-2
        pairs = [(row[f"triton {part}"], row[f"torch {part}"]) for part in ("output", "worst gradient")]
        row["right"] = all(error <= max(limit, 2 * other) for error, other in pairs)
        rows.append(row)
    return rows


def _with_gradients(
    call: Callable[[Tensor, Grid], Tensor], mixer: nn.Module, hidden: Tensor, grid: Grid
) -> list[Tensor]:
    hidden = hidden.clone().requires_grad_()
    output = call(hidden, grid)
    upstream = torch.linspace(-1, 2, output.numel(), device=output.device).view_as(output).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [hidden, *mixer.parameters()], upstream)]


def depthwise(bench: Bench, channels: int, side: int, kernel: int) -> Rows:
    """Torch's own depthwise convolution, planar and channels-last, in the bench's precision and float16."""
    calls, read = {}, 2 * bench.batch * channels * side**2
    for dtype in dict.fromkeys((bench.dtype, torch.float16 if bench.device.type == "cuda" else bench.dtype)):
        weight = torch.randn(channels, 1, kernel, kernel, device=bench.device, dtype=dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            image = torch.randn(bench.batch, channels, side, side, device=bench.device, dtype=dtype)
            image, own = image.to(memory_format=layout), weight.to(memory_format=layout)
            name = f"{'planar' if layout == torch.contiguous_format else 'channels-last'} {str(dtype)[6:]}"
            calls[name] = partial(F.conv2d, image, own, padding=kernel // 2, groups=channels)
    shape = {"channels": channels, "side": side, "kernel": kernel, "least_bytes": read * bench.dtype.itemsize}
    return [{**shape, "candidate": name, **row} for name, row in bench.times(calls).items()]


def layer(bench: Bench, channels: int, heads: int, side: int, **options: Any) -> Rows:
    """One site: attention by each of torch's kernels, and what may stand in its place; forward, and with gradients."""
    grid = Grid(side, side)
    site = site_of(channels, grid, heads)
    hidden = bench.random(bench.batch, grid.tokens, channels, grad=True)
    attention = Attention(channels, heads=heads, dim_head=channels // heads).to(bench.device, bench.dtype)
    delta = DeltaConvBlock(site, **options).to(bench.device, bench.dtype)
    fused = DeltaConvBlock(site, **options, backend="triton").to(bench.device, bench.dtype)
    fused.load_state_dict(delta.state_dict())
    compiled = torch.compile(copy.deepcopy(delta), backend=bench.backend, dynamic=False)
    others = {
        "linear attention": LinearAttention(site, branch_dim=1 / 16),
        FREE: Free(site),
    }
    mixers = {name: mixer.to(bench.device, bench.dtype) for name, mixer in others.items()}
    made: dict[str, tuple[Call, nn.Module]] = {
        ATTENTION: (lambda: attention(hidden), attention),
        "attention, flash": (_by(SDPBackend.FLASH_ATTENTION, attention, hidden), attention),
        "attention, cuDNN": (_by(SDPBackend.CUDNN_ATTENTION, attention, hidden), attention),
        "delta, layer by layer": (lambda: delta.reference(hidden, grid), delta),
        "delta, few calls": (lambda: delta(hidden, grid), delta),
        "delta, compiled": (lambda: compiled(hidden, grid), delta),
        "delta, triton": (lambda: fused(hidden, grid), fused),
    } | {name: (lambda mixer=mixer: mixer(hidden, grid), mixer) for name, mixer in mixers.items()}
    wanted = delta.reference(hidden, grid).detach()
    work = least_work(
        inputs=hidden.numel(),
        outputs=hidden.numel(),
        weights=sum(each.numel() for each in delta.parameters()),
        flops=bench.batch * delta.flops(grid),
        itemsize=bench.dtype.itemsize,
    )
    rows = []
    for direction in ("forward", "forward+backward"):
        calls = {
            name: passes(call, (hidden, *module.parameters()))[direction]
            for name, (call, module) in made.items()
            if direction == "forward" or name != FREE
        }
        for name, row in bench.times(calls).items():
            shape = {"channels": channels, "tokens": grid.tokens, "candidate": name, "direction": direction}
            rows.append({**shape, **row, "least_bytes": work.bytes, "least_flops": work.flops})
            if name.startswith("delta") and direction == "forward" and "seconds" in row:
                rows[-1]["error"] = relative_l2(made[name][0](), wanted)
    if bench.device.type == "cuda":
        rows += [{"candidate": "kernels of delta, triton", **each} for each in _profile(made["delta, triton"][0])]
    return rows


def _by(backend: SDPBackend, attention: nn.Module, hidden: Tensor) -> Call:
    def call() -> Tensor:
        with sdpa_kernel(backend):
            output: Tensor = attention(hidden)
            return output

    return call


def _profile(call: Call) -> Rows:
    """Microseconds of each kernel of a call, by name."""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            call()
    return [
        {"direction": each.key[:60], "seconds": each.self_device_time_total / 10 / 1e6}
        for each in profile.key_averages()
        if each.self_device_time_total
    ]


def denoiser(bench: Bench, build: Callable[[], Any], pixels: int, **options: Any) -> Rows:
    """A whole denoiser with attention and with mixers: eager, as a CUDA graph, and compiled block by block."""
    with _defaults(bench):
        untouched = build().eval().requires_grad_(False)
    size = (pixels // PIXELS_PER_LATENT,) * 2
    inputs = example_inputs(untouched, batch=bench.batch, size=size, device=bench.device, dtype=bench.dtype)
    networks: dict[str, Any] = {ATTENTION: untouched}
    factories: dict[str, Callable[[Site], FeatureMixer]] = {
        FREE: Free,
        "delta": partial(DeltaConvBlock, **options),
        "delta, triton": partial(DeltaConvBlock, **options, backend="triton"),
        "linear attention": partial(LinearAttention, branch_dim=1 / 16),
    }
    for name, factory in factories.items():
        shared = {id(tensor): tensor for tensor in (*untouched.parameters(), *untouched.buffers())}
        networks[name] = copy.deepcopy(untouched, shared)
        with _defaults(bench):
            replace(networks[name], factory)
        finalize(networks[name])
        networks[name].requires_grad_(False)

    def forward(network: Any) -> Tensor:
        with torch.no_grad():
            output: Tensor = network(**inputs, return_dict=False)[0]
            return output

    calls = {name: partial(forward, network) for name, network in networks.items()}
    rows = [{"candidate": name, "mode": "eager", **row} for name, row in bench.times(calls).items()]
    if bench.device.type == "cuda":
        graphs = {name: _graph(call) for name, call in calls.items()}
        rows += [{"candidate": name, "mode": "CUDA graph", **row} for name, row in bench.times(graphs).items()]
        del graphs
    for name in (ATTENTION, FREE, "delta", "delta, triton"):
        for block in _blocks(networks[name]):
            block.compile(backend=bench.backend, dynamic=False)
    compiled = {name: calls[name] for name in (ATTENTION, FREE, "delta", "delta, triton")}
    rows += [{"candidate": name, "mode": "compiled blocks", **row} for name, row in bench.times(compiled).items()]
    return [{"pixels": pixels, **row} for row in rows]


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [block for block in network.modules() if type(block).__name__.endswith("TransformerBlock")]


def _graph(call: Call) -> Call:
    """A CUDA graph of a call, made at its first run; where a graph cannot be made, the error."""
    held: list[Any] = []

    def replay() -> None:
        if not held:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            with torch.cuda.stream(stream):
                call()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                call()
            held.append(graph)
        held[0].replay()

    return replay


def layerwise_step(bench: Bench, build: Callable[[], Any], pixels: int, **options: Any) -> Rows:
    """A layer-wise step without the optimiser against the teacher's forward pass, with waits counted."""
    rows: Rows = []
    for backend in ("torch", "triton"):
        with _defaults(bench):
            network = build()
        shells = replace(network, partial(DeltaConvBlock, **options, backend=backend))
        for shell in shells.values():
            shell.mixer.to(bench.device, torch.float32).requires_grad_()
        size = (pixels // PIXELS_PER_LATENT,) * 2
        inputs = example_inputs(network, batch=bench.batch, size=size, device=bench.device, dtype=bench.dtype)
        trained = [parameter for shell in shells.values() for parameter in shell.mixer.parameters()]

        def teacher(network: Any = network, shells: Any = shells, inputs: Any = inputs) -> None:
            set_mode(shells.values(), Mode.TEACHER)
            with torch.no_grad():
                network(**inputs, return_dict=False)

        def step(network: Any = network, shells: Any = shells, inputs: Any = inputs, trained: Any = trained) -> None:
            set_mode(shells.values(), Mode.LAYERWISE)
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.dtype == torch.bfloat16):
                with torch.no_grad():
                    network(**inputs, return_dict=False)
                squares = [shell.take_squares() for shell in shells.values()]
                errors, powers = (torch.stack(each) for each in zip(*squares, strict=True))
                torch.autograd.grad((errors / powers).mean(), trained)

        for mode in ("eager", "compiled blocks"):
            if mode != "eager":
                for block in _blocks(network):
                    block.compile(backend=bench.backend, dynamic=False)
            found = bench.times({"teacher forward": teacher, "layer-wise step": step})
            waits = {"layer-wise step": _waits(step)} if bench.device.type == "cuda" else {}
            rows += [
                {"pixels": pixels, "mixers": backend, "mode": mode, "candidate": name, **row, "waits": waits.get(name)}
                for name, row in found.items()
            ]
    return rows


def _waits(call: Call) -> int:
    """How often a call makes the processor wait for the device."""
    call()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(each.message) for each in seen)


def gpu_tests() -> Rows:
    """The tests that need a GPU, in a process of their own; a file that lacks a package there hinders no other."""
    marked = [str(file) for file in sorted(Path("tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    options = ["-q", "-m", "gpu and not faults", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, *marked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return [{"exit code": done.returncode, "told": (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]}]


@contextmanager
def _defaults(bench: Bench) -> Iterator[None]:
    """Make modules in their precision where they will stay: faster than to convert and move large ones."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(bench.dtype)
    try:
        with bench.device:
            yield
    finally:
        torch.set_default_dtype(before)
