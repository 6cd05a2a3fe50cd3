"""Triton kernels of the delta convolution's forward pass: entry, all stages with their gates, exit.

Shape legend: B images, N tokens (H * W), C channels of the site, E entry channels, G = E / 2, F features that the exit
reads. See ``blocks.ops.delta_conv.triton_parts``.
"""

from __future__ import annotations

from blocks.ops.delta_conv.triton_parts import (
    COLUMNS,
    INPUT,
    OUTPUT,
    ROWS,
    WIDTH,
    convolved,
    held,
    sampled,
    stage_of_tile,
)
from blocks.ops.triton_here import jit, tl


@jit
def project(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    planes: tl.tensor,
    sums: tl.tensor,
    table: tl.tensor,
    C: tl.tensor,
    E: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    HAS_BIAS: tl.constexpr,
    HELD: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOWS: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    BE: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write a linear map of tokens (B, N, C) as planes (B, E, H, W), averages of these, and sums of the tokens.

    A program takes TY x TX tokens of an image and BE channels. ``WINDOWS`` has height and width of each stage's
    windows, zero where another kernel averages. The sums (B, tiles, C) are those of the tokens that came in.
    """
    tile, beside = tl.program_id(0), tl.cdiv(W, TX)
    tiles, image = tl.num_programs(0), tl.program_id(2).to(tl.int64)
    at = tl.arange(0, TY * TX)
    y, column = tile // beside * TY + at // TX, tile % beside * TX + at % TX
    inside = (y < H) & (column < W)
    token = (image * (H * W) + y * W + column)[None, :]
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    total = tl.full((BE, TY * TX), 0.0, tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        tokens = tl.load(x + token * C + c[:, None], mask=inside[None, :] & (c < C)[:, None], other=0.0)
        of_rows = weight + e[:, None].to(tl.int64) * row_stride + c[None, :] * column_stride
        rows = tl.load(of_rows, mask=(e < E)[:, None] & (c < C)[None, :], other=0.0)
        total += tl.dot(rows, tokens.to(rows.dtype), input_precision=PRECISION)
        if tl.program_id(1) == 0:
            tl.store(sums + (image * tiles + tile) * C + c, tl.sum(tokens.to(tl.float32), 1), mask=c < C)
    if HAS_BIAS:
        total += tl.load(bias + e, mask=e < E, other=0.0).to(tl.float32)[:, None]
    plane = (image * E + e)[:, None]
    here = y * W + column
    tl.store(
        planes + plane * (H * W) + here[None, :], held(total, planes, HELD), mask=(e < E)[:, None] & inside[None, :]
    )
    for stage in tl.static_range(STAGES):
        if WINDOWS[2 * stage] > 0:
            h, w = table[stage * COLUMNS + ROWS], table[stage * COLUMNS + WIDTH]
            small = planes + table[stage * COLUMNS + INPUT] + plane * (h * w)
            y0, x0, is_channel = tile // beside, tile % beside, (e < E)[:, None]
            _shrink(
                total, small, is_channel, y0, x0, h, w, WINDOWS[2 * stage], WINDOWS[2 * stage + 1], TY, TX, BE, HELD
            )


@jit
def _shrink(
    tile: tl.tensor,
    planes: tl.tensor,
    is_channel: tl.tensor,
    y0: tl.tensor,
    x0: tl.tensor,
    h: tl.tensor,
    w: tl.tensor,
    RY: tl.constexpr,
    RX: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
    BE: tl.constexpr,
    HELD: tl.constexpr,
) -> None:
    """Write averages over windows of RY x RX of a tile (BE, TY * TX), the one in row y0 and column x0 of tiles."""
    small = tl.sum(tl.reshape(tile, (BE, TY // RY, RY, TX // RX, RX)), 4)
    small = tl.reshape(tl.sum(small, 2), (BE, (TY // RY) * (TX // RX))) / (RY * RX)
    at = tl.arange(0, (TY // RY) * (TX // RX))
    y, x = y0 * (TY // RY) + at // (TX // RX), x0 * (TX // RX) + at % (TX // RX)
    mask = is_channel & ((y < h) & (x < w))[None, :]
    tl.store(planes + (y * w + x)[None, :], held(small, planes, HELD), mask=mask)


@jit
def average(
    planes: tl.tensor,
    table: tl.tensor,
    E: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    stage: tl.constexpr,
    RY: tl.tensor,
    RX: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write adaptive averages of the first planes for a stage whose windows are not equal ones; RY x RX at most."""
    h, w = table[stage * COLUMNS + ROWS], table[stage * COLUMNS + WIDTH]
    plane = tl.program_id(2).to(tl.int64) * E + tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = at // w, at % w
    top, bottom = y * H // h, ((y + 1) * H + h - 1) // h
    left, right = x * W // w, ((x + 1) * W + w - 1) // w
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for dy in range(0, RY):
        for dx in range(0, RX):
            mask = (at < h * w) & (top + dy < bottom) & (left + dx < right)
            total += tl.load(planes + plane * (H * W) + (top + dy) * W + left + dx, mask=mask, other=0.0).to(tl.float32)
    mean = total / ((bottom - top) * (right - left)).to(tl.float32)
    tl.store(planes + table[stage * COLUMNS + INPUT] + plane * (h * w) + at, held(mean, planes, True), mask=at < h * w)


@jit
def mix_stages(
    planes: tl.tensor,
    taps: tl.tensor,
    biases: tl.tensor,
    gated: tl.tensor,
    sums: tl.tensor,
    pool: tl.tensor,
    pool_bias: tl.tensor,
    pooled: tl.tensor,
    mean: tl.tensor,
    table: tl.tensor,
    tiles: tl.tensor,
    G: tl.tensor,
    C: tl.tensor,
    tokens: tl.tensor,
    token_tiles: tl.tensor,
    chunks: tl.tensor,
    pools: tl.tensor,
    gate_scale: tl.tensor,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SIGMOID: tl.constexpr,
    STAGES: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
    KW: tl.constexpr,
    BO: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Convolve and gate every stage; the first ``pools`` programs map the mean of the tokens, beside that.

    A program takes BY x BX pixels of a stage, of one signal and its gate, and writes (B, G, h, w).
    """
    program = tl.program_id(0)
    if program < pools:
        _map_mean(sums, pool, pool_bias, pooled, mean, program, C, tokens, token_tiles, chunks, BO, BC)
    else:
        program -= pools
        tile, g, image = program % tiles, program // tiles % G, (program // tiles // G).to(tl.int64)
        h, w, number, source, target, down, right = stage_of_tile(table, tile, STAGES)
        y0, x0 = down * BY, right * BX
        own_planes, channel = planes + source, number * (2 * G) + g
        plane, gate = own_planes + (image * (2 * G) + g) * (h * w), own_planes + (image * (2 * G) + g + G) * (h * w)
        s = convolved(plane, taps + channel * (K * K), y0, x0, h, w, K, BY, BX, KW, False, PRECISION)
        t = convolved(gate, taps + (channel + G) * (K * K), y0, x0, h, w, K, BY, BX, KW, False, PRECISION)
        if HAS_BIAS:
            s += tl.load(biases + channel).to(tl.float32)
            t += tl.load(biases + channel + G).to(tl.float32)
        value = s / (1 + tl.exp(-t)) if SIGMOID else s * t * gate_scale
        y, x = y0 + tl.arange(0, BY)[:, None], x0 + tl.arange(0, BX)[None, :]
        out = gated + target // 2 + (image * G + g) * (h * w)
        tl.store(out + y * w + x, held(value, gated, True), mask=(y < h) & (x < w))


@jit
def _map_mean(
    sums: tl.tensor,
    pool: tl.tensor,
    bias: tl.tensor,
    pooled: tl.tensor,
    mean: tl.tensor,
    program: tl.tensor,
    C: tl.tensor,
    tokens: tl.tensor,
    token_tiles: tl.tensor,
    chunks: tl.tensor,
    BO: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """Write the linear map of an image's mean token, BO channels of it, and the mean itself."""
    image, out = program // chunks, program % chunks * BO + tl.arange(0, BO)
    total = tl.load(bias + out, mask=out < C, other=0.0).to(tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        own = tl.full((BC,), 0.0, tl.float32)
        for tile in range(0, token_tiles):
            own += tl.load(sums + (image * token_tiles + tile).to(tl.int64) * C + c, mask=c < C, other=0.0)
        own = own / tokens
        if program % chunks == 0:
            tl.store(mean + image * C + c, own, mask=c < C)
        at = pool + out[:, None] * C + c[None, :]
        rows = tl.load(at, mask=(out < C)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(rows * own[None, :], 1)
    tl.store(pooled + image * C + out, total, mask=out < C)


@jit
def leave(
    planes: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    pooled: tl.tensor,
    out: tl.tensor,
    table: tl.tensor,
    G: tl.tensor,
    C: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    HAS_BIAS: tl.constexpr,
    HAS_POOL: tl.constexpr,
    HELD: tl.constexpr,
    STAGES: tl.constexpr,
    CONCAT: tl.constexpr,
    BN: tl.constexpr,
    BG: tl.constexpr,
    BO: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Map the stages' planes (B, G, h, w), up-sampled on the way, to tokens (B, N, C), and add each image's own row.

    A program takes BN tokens of an image and BO of their channels.
    """
    image = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * BN + tl.arange(0, BN)
    is_token = token < H * W
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    total = tl.full((BN, BO), 0.0, tl.float32)
    for stage in tl.static_range(STAGES):
        h, w = table[stage * COLUMNS + ROWS], table[stage * COLUMNS + WIDTH]
        own = planes + table[stage * COLUMNS + OUTPUT] // 2 + image * G * (h * w)
        for g0 in range(0, G, BG):
            g = g0 + tl.arange(0, BG)
            features = sampled(own, g[:, None], (g < G)[:, None], token[None, :], is_token[None, :], h, w, H, W)
            f = g + stage * G if CONCAT else g
            at = weight + o[None, :].to(tl.int64) * row_stride + f[:, None] * column_stride
            columns = tl.load(at, mask=(o < C)[None, :] & (g < G)[:, None], other=0.0)
            total += tl.dot(tl.trans(features).to(columns.dtype), columns, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + o, mask=o < C, other=0.0).to(tl.float32)[None, :]
    if HAS_POOL:
        total += tl.load(pooled + image * C + o, mask=o < C, other=0.0)[None, :]
    at_out = out + (image * (H * W) + token[:, None]) * C + o[None, :]
    tl.store(at_out, held(total, out, HELD), mask=is_token[:, None] & (o < C)[None, :])
