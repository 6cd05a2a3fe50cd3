"""Triton kernels of the delta convolution's backward pass, which knows nothing but the planes of the entry.

Gradients of weights are summed in a fixed order: every program writes the part of one split, and splits are added
afterwards. Shape legend: B images, N tokens (H * W), C channels of the site, E entry channels, G = E / 2, F features
that the exit reads, S splits. See ``blocks.ops.delta_conv.triton_parts``.
"""

from __future__ import annotations

from blocks.ops.delta_conv.triton_parts import (
    COLUMNS,
    OUTPUT,
    ROWS,
    WIDTH,
    convolved,
    held,
    sampled,
    stage_of_number,
    stage_of_tile,
)
from blocks.ops.triton_here import jit, tl


@jit
def gate_gradients(
    planes: tl.tensor,
    taps: tl.tensor,
    biases: tl.tensor,
    features: tl.tensor,
    gated: tl.tensor,
    out: tl.tensor,
    table: tl.tensor,
    tiles: tl.tensor,
    G: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    gate_scale: tl.tensor,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SIGMOID: tl.constexpr,
    STAGES: tl.constexpr,
    CONCAT: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
    KW: tl.constexpr,
    NEAR: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Convolve every stage again; write its gated planes (B, G, h, w), and gradients before the gate (B, E, h, w).

    ``features`` (B, F, H, W) are gradients of the features; a pixel of a smaller stage gathers them from
    those that bilinear up-sampling spreads it to.
    """
    program = tl.program_id(0)
    tile, g, image = program % tiles, program // tiles % G, (program // tiles // G).to(tl.int64)
    h, w, number, source, lies, down, right = stage_of_tile(table, tile, STAGES)
    y0, x0 = down * BY, right * BX
    own_planes, channel = planes + source, number * (2 * G) + g
    signal, gate = (image * (2 * G) + g) * (h * w), (image * (2 * G) + g + G) * (h * w)
    s = convolved(own_planes + signal, taps + channel * (K * K), y0, x0, h, w, K, BY, BX, KW, False, PRECISION)
    t = convolved(own_planes + gate, taps + (channel + G) * (K * K), y0, x0, h, w, K, BY, BX, KW, False, PRECISION)
    if HAS_BIAS:
        s += tl.load(biases + channel).to(tl.float32)
        t += tl.load(biases + channel + G).to(tl.float32)
    feature = image * (STAGES * G) + number * G + g if CONCAT else image * G + g
    fine = features + feature * (H * W)
    kind = out.dtype.element_ty
    y, x = y0 + tl.arange(0, BY)[:, None], x0 + tl.arange(0, BX)[None, :]
    inside = (y < h) & (x < w)
    if (h == H) & (w == W):
        dy = tl.load(fine + y * W + x, mask=inside, other=0.0).to(tl.float32)
    else:
        dy = tl.full((BY, BX), 0.0, tl.float32)
        near = tl.arange(0, NEAR)
        for fy in range(
            tl.maximum((2 * y0 - 1) * H // (2 * h) - 1, 0), tl.minimum((2 * (y0 + BY) + 1) * H // (2 * h) + 2, H), NEAR
        ):
            at_y = tl.minimum(tl.maximum((fy + near[None, :] + 0.5) * (h / H) - 0.5, 0.0), h - 1.0)
            of_rows = tl.maximum(1.0 - tl.abs(at_y - y), 0.0).to(kind)
            for fx in range(
                tl.maximum((2 * x0 - 1) * W // (2 * w) - 1, 0),
                tl.minimum((2 * (x0 + BX) + 1) * W // (2 * w) + 2, W),
                NEAR,
            ):
                at_x = tl.minimum(tl.maximum((fx + near[:, None] + 0.5) * (w / W) - 0.5, 0.0), w - 1.0)
                of_columns = tl.maximum(1.0 - tl.abs(at_x - x), 0.0).to(kind)
                row, column = fy + near[:, None], fx + near[None, :]
                values = tl.load(fine + row * W + column, mask=(row < H) & (column < W), other=0.0)
                half = tl.dot(of_rows, values, input_precision=PRECISION)
                dy += tl.dot(half.to(kind), of_columns, input_precision=PRECISION)
    if SIGMOID:
        opened = 1 / (1 + tl.exp(-t))
        value, ds, dt = s * opened, dy * opened, dy * s * opened * (1 - opened)
    else:
        value, ds, dt = s * t * gate_scale, dy * t * gate_scale, dy * s * gate_scale
    here = y * w + x
    tl.store(gated + lies // 2 + (image * G + g) * (h * w) + here, held(value, gated, True), mask=inside)
    tl.store(out + lies + signal + here, ds.to(kind), mask=inside)
    tl.store(out + lies + gate + here, dt.to(kind), mask=inside)


@jit
def input_gradients(
    gradients: tl.tensor,
    taps: tl.tensor,
    out: tl.tensor,
    table: tl.tensor,
    tiles: tl.tensor,
    E: tl.tensor,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
    KW: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Gradients of every stage's input (B, E, h, w): those before the gate, convolved with the kernel turned round."""
    program = tl.program_id(0)
    tile, e, image = program % tiles, program // tiles % E, (program // tiles // E).to(tl.int64)
    h, w, number, _, lies, down, right = stage_of_tile(table, tile, STAGES)
    y0, x0 = down * BY, right * BX
    plane = lies + (image * E + e) * (h * w)
    value = convolved(
        gradients + plane, taps + (number * E + e) * (K * K), y0, x0, h, w, K, BY, BX, KW, True, PRECISION
    )
    y, x = y0 + tl.arange(0, BY)[:, None], x0 + tl.arange(0, BX)[None, :]
    tl.store(out + plane + y * w + x, value.to(out.dtype.element_ty), mask=(y < h) & (x < w))


@jit
def collect(
    gradients: tl.tensor,
    out: tl.tensor,
    table: tl.tensor,
    E: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Gradients of the entry's planes (B, E, H, W): those of all stages, as adaptive averaging spreads them."""
    plane = tl.program_id(2).to(tl.int64) * E + tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = at // W, at % W
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for stage in tl.static_range(STAGES):
        h, w = table[stage * COLUMNS + ROWS], table[stage * COLUMNS + WIDTH]
        own = gradients + table[stage * COLUMNS + OUTPUT] + plane * (h * w)
        for below in tl.static_range(2):  # windows overlap where sides do not divide: a pixel lies in two at most
            row = y * h // H + below
            top, bottom = row * H // h, ((row + 1) * H + h - 1) // h
            in_rows = (at < H * W) & (row < h) & (top <= y) & (y < bottom)
            for right in tl.static_range(2):
                column = x * w // W + right
                first, last = column * W // w, ((column + 1) * W + w - 1) // w
                mask = in_rows & (column < w) & (first <= x) & (x < last)
                value = tl.load(own + row * w + column, mask=mask, other=0.0).to(tl.float32)
                total += value / ((bottom - top) * (last - first)).to(tl.float32)
    tl.store(out + plane * (H * W) + at, total.to(out.dtype.element_ty), mask=at < H * W)


@jit
def tap_gradients(
    planes: tl.tensor,
    gradients: tl.tensor,
    taps: tl.tensor,
    biases: tl.tensor,
    table: tl.tensor,
    images: tl.tensor,
    E: tl.tensor,
    parameters: tl.tensor,
    splits: tl.tensor,
    K: tl.constexpr,
    STAGES: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
    KW: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Gradients of a row of a depthwise kernel, (S, stages, E, K, K), and of its bias: one split of the rows of tiles.

    Diagonals of the product of gradients with the image beside them. Splits lie ``parameters`` apart.
    """
    ky, e, number = tl.program_id(0) % K, tl.program_id(0) // K, tl.program_id(1)
    split = tl.program_id(2)
    h, w, source, lies = stage_of_number(table, number, STAGES)
    total, bias = tl.full((BX, KW), 0.0, tl.float32), tl.full((BY,), 0.0, tl.float32)
    down = tl.cdiv(h, BY)
    for task in range(split, images * down, splits):
        own, y0 = ((task // down).to(tl.int64) * E + e) * (h * w), task % down * BY
        for x0 in range(0, w, BX):
            y, x = y0 + tl.arange(0, BY)[:, None], x0 + tl.arange(0, BX)[None, :]
            d = tl.load(gradients + lies + own + y * w + x, mask=(y < h) & (x < w), other=0.0)
            y, x = y + ky - K // 2, x0 - K // 2 + tl.arange(0, KW)[None, :]
            is_inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
            around = tl.load(planes + source + own + y * w + x, mask=is_inside, other=0.0)
            total += tl.dot(tl.trans(d), around, input_precision=PRECISION)
            bias += tl.sum(d.to(tl.float32), 1)
    channel = split.to(tl.int64) * parameters + number * E + e
    kernel = split.to(tl.int64) * parameters + (number * E + e) * (K * K) + ky * K
    tap = tl.arange(0, KW)[None, :] - tl.arange(0, BX)[:, None]
    for kx in tl.static_range(K):
        tl.store(taps + kernel + kx, tl.sum(tl.sum(tl.where(tap == kx, total, 0.0), 1), 0))
    if ky == 0:
        tl.store(biases + channel, tl.sum(bias, 0))


@jit
def matrix_gradients(
    planes: tl.tensor,
    dense: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    table: tl.tensor,
    images: tl.tensor,
    R: tl.tensor,
    C: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    parameters: tl.tensor,
    splits: tl.tensor,
    row_tiles: tl.tensor,
    HAS_BIAS: tl.constexpr,
    STAGES: tl.constexpr,
    CONCAT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Products over all tokens of planes (B, R, h, w), up-sampled on the way, and dense rows (B, N, C): one split.

    With ``CONCAT`` the planes of a stage after the other are the rows, else their sum is. Sums of the rows are the
    gradient of a bias. Splits lie ``parameters`` apart.
    """
    number, split = tl.program_id(0) // row_tiles, tl.program_id(2)
    r = tl.program_id(0) % row_tiles * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    chunks = tl.cdiv(H * W, BN)
    total, sums = tl.full((BR, BC), 0.0, tl.float32), tl.full((BR,), 0.0, tl.float32)
    for task in range(split, images * chunks, splits):
        image, token = (task // chunks).to(tl.int64), task % chunks * BN + tl.arange(0, BN)
        is_token = token < H * W
        at = dense + (image * (H * W) + token[:, None]) * C + c[None, :]
        columns = tl.load(at, mask=is_token[:, None] & (c < C)[None, :], other=0.0)
        if CONCAT:
            h, w, _, lies = stage_of_number(table, number, STAGES)
            own = planes + lies // 2 + image * R * (h * w)
            rows = sampled(own, r[:, None], (r < R)[:, None], token[None, :], is_token[None, :], h, w, H, W)
        else:
            rows = tl.full((BR, BN), 0.0, tl.float32)
            for stage in tl.static_range(STAGES):
                h, w = table[stage * COLUMNS + ROWS], table[stage * COLUMNS + WIDTH]
                own = planes + table[stage * COLUMNS + OUTPUT] // 2 + image * R * (h * w)
                rows += sampled(own, r[:, None], (r < R)[:, None], token[None, :], is_token[None, :], h, w, H, W)
        kind = planes.dtype.element_ty
        total += tl.dot(rows.to(kind), columns.to(kind), input_precision=PRECISION)
        sums += tl.sum(rows, 1)
    row = number * R + r if CONCAT else r
    at_weight = weight + split.to(tl.int64) * parameters + row[:, None] * row_stride + c[None, :] * column_stride
    tl.store(at_weight, total, mask=(r < R)[:, None] & (c < C)[None, :])
    if HAS_BIAS:  # noqa: SIM102 (the first is known when the kernel is compiled)
        if tl.program_id(1) == 0:
            tl.store(bias + split.to(tl.int64) * parameters + r, sums, mask=r < R)


@jit
def pool_gradients(
    sums: tl.tensor,
    mean: tl.tensor,
    weight: tl.tensor,
    biases: tl.tensor,
    images: tl.tensor,
    C: tl.tensor,
    token_tiles: tl.tensor,
    BO: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """Gradients of the pool branch (C, C) from sums of the output's gradients over tiles of tokens, and of two biases.

    The output is a sum of exit and pool branch, so that both of their biases have one gradient: (2, C).
    """
    o, c = tl.program_id(0) * BO + tl.arange(0, BO), tl.program_id(1) * BC + tl.arange(0, BC)
    total, bias = tl.full((BO, BC), 0.0, tl.float32), tl.full((BO,), 0.0, tl.float32)
    for image in range(0, images):
        own = tl.full((BO,), 0.0, tl.float32)
        for tile in range(0, token_tiles):
            own += tl.load(sums + (image * token_tiles + tile) * C + o, mask=o < C, other=0.0)
        average = tl.load(mean + image * C + c, mask=c < C, other=0.0)
        total += own[:, None] * average[None, :]
        bias += own
    tl.store(weight + o[:, None] * C + c[None, :], total, mask=(o < C)[:, None] & (c < C)[None, :])
    if tl.program_id(1) == 0:
        tl.store(biases + o, bias, mask=o < C)
        tl.store(biases + C + o, bias, mask=o < C)
