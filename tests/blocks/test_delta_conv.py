"""The delta convolution block: options and presets, its plain twin, number formats, FLOPs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blocks import DeltaConvBlock, Grid, Site
from sparsight.testing import relative_l2


def site(path: str = "transformer_blocks.0.attn1", channels: int = 16, grid: Grid = Grid(8, 8)) -> Site:  # noqa: B008
    return Site(path, channels=channels, heads=2, head_dim=channels // 2, grid=grid)


VARIANTS = {
    "default": {},
    "paper": {"preset": "paper_pixart", "kernel_size": 5},
    "released": {"preset": "released_sdxl", "kernel_size": 3},
    "released_pixart": {"preset": "released_pixart"},
    "thirds": {"scales": [1, 1 / 3], "gate": "multiply", "merge": "sum", "pool_branch": False, "entry_width": 0.75},
    "one_stage": {"scales": [0.25], "gate": "divide", "kernel_size": 1},
}
GRIDS = [Grid(6, 9), Grid(5, 3), Grid(1, 7), Grid(2, 2), Grid(1, 1)]


def grid_id(grid: Grid) -> str:
    return f"{grid.height}x{grid.width}"


def pooled(image, size):
    """Adaptive average pooling with explicit windows."""
    (full_h, full_w), (height, width) = image.shape[-2:], size
    cells = []
    for y in range(height):
        for x in range(width):
            top, bottom = y * full_h // height, math.ceil((y + 1) * full_h / height)
            left, right = x * full_w // width, math.ceil((x + 1) * full_w / width)
            cells.append(image[..., top:bottom, left:right].mean((-1, -2)))
    return torch.stack(cells, -1).unflatten(-1, size)


def interpolation(small: int, full: int):
    """Matrix (full, small) of linear interpolation between pixel centres, clamped at the border."""
    matrix = torch.zeros(full, small, dtype=torch.float64)
    for i in range(full):
        place = min(max((i + 0.5) * small / full - 0.5, 0), small - 1)
        low = min(int(place), small - 1)
        high = min(low + 1, small - 1)
        matrix[i, low] += 1 - (place - low)
        matrix[i, high] += place - low
    return matrix


def convolved(image, weight, bias):
    """Depthwise cross-correlation with zero padding, one tap at a time."""
    reach = weight.shape[-1] // 2
    height, width = image.shape[-2:]
    padded = image.new_zeros(*image.shape[:2], height + 2 * reach, width + 2 * reach)
    padded[..., reach : reach + height, reach : reach + width] = image
    out = torch.zeros_like(image)
    for y in range(weight.shape[-1]):
        for x in range(weight.shape[-1]):
            out = out + weight[:, 0, y, x, None, None] * padded[..., y : y + height, x : x + width]
    return out if bias is None else out + bias[:, None, None]


def reference(mixer: DeltaConvBlock, hidden, grid: Grid):
    """The block in float64, written from the paper's description and the options."""
    hidden = hidden.double()
    weight = {name: tensor.double() for name, tensor in mixer.named_parameters()}
    entry = hidden @ weight["entry.weight"].T + weight["entry.bias"]
    image = torch.stack([row.T.unflatten(1, (grid.height, grid.width)) for row in entry])
    half, stages = image.shape[1] // 2, []
    for i, scale in enumerate(mixer.scales):
        size = tuple(max(1, math.floor(side * scale + 1e-6)) for side in (grid.height, grid.width))
        x = convolved(pooled(image, size), weight[f"depthwise.{i}.weight"], weight.get(f"depthwise.{i}.bias"))
        first, second = x[:, :half], x[:, half:]
        gate = {
            "divide": second / math.sqrt(hidden.shape[-1]),
            "multiply": second * math.sqrt(half),
            "sigmoid": 1 / (1 + torch.exp(-second)),
        }[mixer.gate]
        up_rows, up_columns = interpolation(size[0], grid.height), interpolation(size[1], grid.width)
        stages.append(up_rows @ (first * gate) @ up_columns.T)
    merged = torch.cat(stages, 1) if mixer.merge == "concat" else sum(stages)
    out = merged.flatten(2).transpose(1, 2) @ weight["exit.weight"].T + weight["exit.bias"]
    if mixer.pool_branch:
        out = out + hidden.mean(1, keepdim=True) @ weight["pool.weight"].T + weight["pool.bias"]
    return out


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_its_plain_twin_in_values_and_gradients(variant, grid):
    mixer = DeltaConvBlock(site(), **VARIANTS[variant])
    hidden = torch.randn(3, grid.tokens, 16, requires_grad=True)
    upstream = torch.randn(3, grid.tokens, 16)
    output, expected = mixer(hidden, grid), reference(mixer, hidden, grid)
    assert relative_l2(output, expected) < 1e-5
    wanted = [hidden, *mixer.parameters()]
    gradients = torch.autograd.grad((output * upstream).sum(), wanted)
    truths = torch.autograd.grad((expected * upstream).sum(), wanted)
    names = ["hidden", *dict(mixer.named_parameters())]
    for name, gradient, truth in zip(names, gradients, truths, strict=True):
        assert (gradient - truth).abs().max() <= 1e-4 * truth.abs().max() + 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_low_precision_stays_close_to_the_plain_twin(variant, dtype):
    mixer = DeltaConvBlock(site(), **VARIANTS[variant]).to(dtype)
    hidden = torch.randn(2, 35, 16).to(dtype)
    output = mixer(hidden, Grid(7, 5))
    assert output.dtype == dtype
    assert relative_l2(output, reference(mixer, hidden, Grid(7, 5))) < 2e-2


@pytest.mark.parametrize("gate", ["divide", "multiply", "sigmoid"])
def test_float16_products_beyond_its_range_stay_finite(gate):
    mixer = DeltaConvBlock(site(), gate=gate)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(parameter.abs() * 10)
    output = mixer.half()(torch.full((1, 64, 16), 30.0, dtype=torch.float16), Grid(8, 8))
    assert output.isfinite().all()
    assert output.abs().max() > 10000  # the case is really at the limit


def test_autocast_returns_the_dtype_of_the_input():
    mixer = DeltaConvBlock(site())
    hidden = torch.randn(2, 30, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = mixer(hidden, Grid(5, 6))
    assert output.dtype == torch.float32
    assert relative_l2(output, mixer(hidden, Grid(5, 6))) < 3e-2


@pytest.mark.parametrize("grid", GRIDS, ids=grid_id)
@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_equal_what_torch_counts(variant, grid):
    with torch.device("meta"):
        mixer = DeltaConvBlock(site(), **VARIANTS[variant])
        hidden = torch.empty(1, grid.tokens, 16)
    with FlopCounterMode(display=False) as counter:
        mixer(hidden, grid)
    assert counter.get_total_flops() == mixer.flops(grid)


def test_flops_of_the_released_block_on_pixart():
    # N C^2 + 2 N (C/4 S) C + sum floor(sH) floor(sW) k^2 C + 2 C^2 at 512 px: 2.97 G in the specification
    pixart = Site("transformer_blocks.0.attn1", channels=1152, heads=16, head_dim=72, grid=Grid(32, 32))
    with torch.device("meta"):
        mixer = DeltaConvBlock(pixart, preset="released_pixart")
    assert mixer.flops(Grid(32, 32)) == 1024 * 1152**2 * 2 + 1280 * 169 * 1152 + 2 * 1152**2
    parameters = sum(parameter.numel() for parameter in mixer.parameters())
    assert parameters == 2 * 1152**2 + 2 * 169 * 576 + 576 + 1152 + 1152


@pytest.mark.parametrize(
    ("preset", "path", "kernel"),
    [
        ("released_sd15", "down_blocks.0.attentions.1.transformer_blocks.0.attn1", 7),
        ("released_sd15", "mid_block.attentions.0.transformer_blocks.0.attn1", 3),
        ("released_sd15", "up_blocks.3.attentions.2.transformer_blocks.0.attn1", 11),
        ("released_sdxl", "down_blocks.2.attentions.0.transformer_blocks.9.attn1", 7),
        ("released_sdxl", "up_blocks.1.attentions.0.transformer_blocks.1.attn1", 13),
        ("released_pixart", "transformer_blocks.27.attn1", 13),
        ("paper_sd15", "mid_block.attentions.0.transformer_blocks.0.attn1", 9),
        ("paper_sdxl", "mid_block.attentions.0.transformer_blocks.0.attn1", 13),
    ],
)
def test_presets_choose_the_published_kernel(preset, path, kernel):
    assert DeltaConvBlock(site(path), preset=preset).kernel_size == kernel


def test_presets_are_the_published_blocks_and_options_override_them():
    paper, released = DeltaConvBlock(site(), preset="paper_pixart"), DeltaConvBlock(site(), preset="released_pixart")
    assert (paper.entry.out_features, paper.exit.in_features, paper.merge, paper.gate) == (4, 2, "sum", "divide")
    assert (released.entry.out_features, released.exit.in_features, released.gate) == (8, 8, "sigmoid")
    assert released.depthwise[0].bias is None
    three = DeltaConvBlock(site(channels=24), preset="paper_pixart", scales=[0.5, 0.25, 0.125], pool_branch=False)
    assert three.entry.out_features == 4  # C / (2n) follows the number of stages
    assert three.pool is None


@pytest.mark.parametrize(
    ("kernel_size", "grid", "expected"),
    [(5, Grid(8, 8), 5), (0.5, Grid(8, 16), 5), (0.25, Grid(64, 64), 17), (1.0, Grid(7, 7), 7), (0.1, Grid(8, 8), 1)],
)
def test_kernel_by_rule(kernel_size, grid, expected):
    assert DeltaConvBlock(site(grid=grid), kernel_size=kernel_size).kernel_size == expected


def test_first_matching_kernel_pattern_counts():
    table = {"*.0.attn1": 3, "transformer_blocks.*": 0.9}
    assert DeltaConvBlock(site("transformer_blocks.0.attn1"), kernel_size=table).kernel_size == 3
    assert DeltaConvBlock(site("transformer_blocks.1.attn1"), kernel_size=table).kernel_size == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "released"}, "preset is one of default, paper_sd15"),
        ({"scales": []}, "scales are one or more numbers"),
        ({"scales": [1, 2]}, r"got \[1, 2\]"),
        ({"entry_width": 17}, "2 to 16 channels"),
        ({"entry_width": 0.0}, "got 0.0"),
        ({"entry_width": "C/4"}, "C/2n"),
        ({"kernel_size": 4}, "odd and positive; got 4"),
        ({"kernel_size": 1.5}, "fraction of the grid"),
        ({"kernel_size": {"mid_block.*": 3}}, "no kernel_size for site 'transformer_blocks.0.attn1'"),
        ({"preset": "released_sd15"}, "choose one number or another preset"),
        ({"merge": "mean"}, "merge is one of concat, sum"),
        ({"gate": "relu"}, "gate is one of divide, multiply, sigmoid"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeltaConvBlock(site(), **options)


def test_wrong_grid_is_refused():
    with pytest.raises(ValueError, match="12 tokens do not fill a grid of 3x5"):
        DeltaConvBlock(site())(torch.zeros(1, 12, 16), Grid(3, 5))
