"""What ``benchmarks.gpu_run`` measures, in its order: a full plan for a GPU, and a tiny one that a CPU can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel

from benchmarks import gpu_pieces as measure
from benchmarks.gpu_pieces import Bench
from blocks import Grid
from sparsight.common.measure.roofline import measure_roofs
from sparsight.diffusion.families.known import published


@dataclass(frozen=True)
class Piece:
    """Rows that are measured together.

    Attributes:
        key: Name in the journal; its first word is the table that it belongs to.
        seconds: What it takes, about.
        measure: Makes its rows.
    """

    key: str
    seconds: float
    measure: Callable[[], list[dict[str, Any]]]


KERNELS: dict[str, tuple[dict[str, Any], Grid]] = {  # options of the block, grid
    "default": ({}, Grid(64, 64)),
    "default odd": ({}, Grid(37, 53)),
    "default small": ({}, Grid(16, 16)),
    "one token": ({}, Grid(1, 1)),
    "one row": ({}, Grid(1, 200)),
    "paper SD1.5": ({"preset": "paper_sd15"}, Grid(64, 64)),
    "paper PixArt": ({"preset": "paper_pixart"}, Grid(64, 64)),
    "released SD1.5": ({"preset": "released_sd15", "kernel_size": 11}, Grid(64, 64)),
    "released SDXL": ({"preset": "released_sdxl", "kernel_size": 13}, Grid(32, 32)),
    "released PixArt": ({"preset": "released_pixart"}, Grid(45, 91)),
    "product, summed": ({"merge": "sum", "gate": "divide", "kernel_size": 5}, Grid(48, 40)),
    "no bias, no pool": ({"depthwise_bias": False, "pool_branch": False, "kernel_size": 3}, Grid(33, 65)),
    "windows overlap": ({"scales": [1, 0.3], "kernel_size": 9}, Grid(50, 31)),
    "kernel 31": ({"kernel_size": 31, "scales": [1, 0.5]}, Grid(64, 96)),
}
DEPTHWISE = [(160, 64), (160, 128), (320, 64), (320, 128), (640, 32), (576, 64)]  # channels, side: SD1.5, XL, PixArt
LAYERS = [  # model, channels, heads, side
    ("SDXL 1024", 1280, 20, 32),
    ("SDXL 1024", 640, 10, 64),
    ("SD1.5 512", 320, 8, 64),
    ("PixArt 1024", 1152, 16, 64),
    ("SD1.5 1024", 320, 8, 128),
    ("SDXL 2048", 640, 10, 128),
    ("SDXL 4096", 640, 10, 256),
]
DENOISERS = [("sdxl", 1024), ("pixart_sigma", 1024), ("sdxl", 2048), ("pixart_sigma", 2048), ("sd15", 1024)]


def full(device: torch.device) -> list[Piece]:
    """The plan for a GPU, about 8 minutes of an H200."""
    bench = Bench(device, torch.bfloat16)
    shapes = [(channels, side, kernel) for channels, side in DEPTHWISE for kernel in (7, 9, 13)]
    pieces = [_roofs(bench), Piece("kernels bfloat16", 60, partial(_kernels, bench, torch.bfloat16))]
    pieces += [_layer(bench, *layer, seconds=12) for layer in LAYERS[:4]]
    pieces += [_denoiser(bench, partial(published, name), name, pixels, 30) for name, pixels in DENOISERS[:2]]
    pieces += [_step(bench, partial(published, "sdxl"), "sdxl", 1024, 40)]
    pieces += [_depthwise(bench, *shape) for shape in shapes]
    pieces += [_denoiser(bench, partial(published, name), name, pixels, 40) for name, pixels in DENOISERS[2:]]
    pieces += [_layer(bench, *layer, seconds=15) for layer in LAYERS[4:]]
    pieces += [
        Piece(f"kernels {kind}", 40, partial(_kernels, bench, getattr(torch, kind))) for kind in ("float16", "float32")
    ]
    pieces += [Piece("tests gpu", 90, measure.gpu_tests), _roofs(bench, "again")]
    return pieces


def tiny(device: torch.device) -> list[Piece]:
    """The kinds of pieces of the full plan, at sizes for a CPU and Triton's interpreter."""
    bench = Bench(device, torch.float32, batch=1, runs=2, seconds=60.0, backend="aot_eager")
    small: dict[str, Any] = {"scales": [1], "kernel_size": 3, "entry_width": 2}
    kernels = partial(measure.kernels, bench, {"small": (small, Grid(2, 3))}, torch.float32, channels=8)
    return [
        _roofs(bench),
        Piece("kernels float32", 0, kernels),
        _layer(bench, "tiny", 16, 2, 4, seconds=0, **small),
        _denoiser(bench, _tiny_denoiser, "tiny", 64, 0, **small),
        _step(bench, _tiny_denoiser, "tiny", 64, 0, **small),
        _depthwise(bench, 8, 4, 3),
    ]


PLANS: dict[str, Callable[[torch.device], list[Piece]]] = {"full": full, "tiny": tiny}


def _roofs(bench: Bench, name: str = "first") -> Piece:
    return Piece(f"roofs {name}", 5, lambda: [asdict(measure_roofs(bench.device, bench.dtype))])


def _kernels(bench: Bench, dtype: torch.dtype) -> list[dict[str, Any]]:
    return measure.kernels(bench, KERNELS, dtype, channels=96)


def _depthwise(bench: Bench, channels: int, side: int, kernel: int) -> Piece:
    key = f"depthwise {channels} channels {side}x{side} kernel {kernel}"
    return Piece(key, 3, partial(measure.depthwise, bench, channels, side, kernel))


def _layer(bench: Bench, model: str, channels: int, heads: int, side: int, *, seconds: float, **options: Any) -> Piece:
    key = f"layer {model} {channels} channels {side * side} tokens"
    return Piece(key, seconds, partial(measure.layer, bench, channels, heads, side, **options))


def _denoiser(bench: Bench, build: Callable[[], Any], name: str, pixels: int, seconds: float, **options: Any) -> Piece:
    return Piece(f"denoiser {name} {pixels}", seconds, partial(measure.denoiser, bench, build, pixels, **options))


def _step(bench: Bench, build: Callable[[], Any], name: str, pixels: int, seconds: float, **options: Any) -> Piece:
    return Piece(f"step {name} {pixels}", seconds, partial(measure.layerwise_step, bench, build, pixels, **options))


def _tiny_denoiser() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=16,
        norm_num_groups=1,
    )
