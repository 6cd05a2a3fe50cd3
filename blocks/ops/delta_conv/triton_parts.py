"""What the Triton kernels of the delta convolution share.

A stage table is a tuple of ``COLUMNS`` numbers a stage: first of its tiles, tiles beside each other, rows, columns,
where its input lies among the planes, where what is computed of it lies, and its number. Images are planar, (B, E, H,
W), and channel g of the first G = E / 2 carries the signal whose gate is channel g + G. Offsets of planes are 64 bits
wide, those inside a plane 32.

Without Triton this file can be imported, and its functions cannot be called.
"""

from __future__ import annotations

from blocks.ops.triton_here import constant, jit, tl

COLUMNS = constant(7)
FIRST, BESIDE, ROWS, WIDTH, INPUT, OUTPUT, NUMBER = (constant(number) for number in range(7))


@jit
def stage_of_tile(table: tl.tensor, tile: tl.tensor, STAGES: tl.constexpr) -> tl.tensor:
    """The stage that a tile belongs to: rows, columns, number, input, output, and the tile's row and column in it."""
    first, beside, h, w, source, target, number = (
        table[FIRST], table[BESIDE], table[ROWS], table[WIDTH], table[INPUT], table[OUTPUT], table[NUMBER]
    )  # fmt: skip
    for stage in tl.static_range(1, STAGES):
        later = tile >= table[stage * COLUMNS + FIRST]
        first = tl.where(later, table[stage * COLUMNS + FIRST], first)
        beside = tl.where(later, table[stage * COLUMNS + BESIDE], beside)
        h = tl.where(later, table[stage * COLUMNS + ROWS], h)
        w = tl.where(later, table[stage * COLUMNS + WIDTH], w)
        source = tl.where(later, table[stage * COLUMNS + INPUT], source)
        target = tl.where(later, table[stage * COLUMNS + OUTPUT], target)
        number = tl.where(later, table[stage * COLUMNS + NUMBER], number)
    return h, w, number, source, target, (tile - first) // beside, (tile - first) % beside


@jit
def stage_of_number(table: tl.tensor, number: tl.tensor, STAGES: tl.constexpr) -> tl.tensor:
    """A stage whose number the program alone knows: rows, columns, input, output."""
    h, w, source, target = table[ROWS], table[WIDTH], table[INPUT], table[OUTPUT]
    for stage in tl.static_range(1, STAGES):
        is_it = number == stage
        h, w = tl.where(is_it, table[stage * COLUMNS + ROWS], h), tl.where(is_it, table[stage * COLUMNS + WIDTH], w)
        source = tl.where(is_it, table[stage * COLUMNS + INPUT], source)
        target = tl.where(is_it, table[stage * COLUMNS + OUTPUT], target)
    return h, w, source, target


@jit
def held(x: tl.tensor, pointer: tl.tensor, HELD: tl.constexpr) -> tl.tensor:
    """A value as it is stored: within float16's range, where that is what is stored and it is to be held there."""
    kind = pointer.dtype.element_ty
    if HELD and kind == tl.float16:
        x = tl.where(x > 65504.0, 65504.0, tl.where(x < -65504.0, -65504.0, x))
    return x.to(kind)


@jit
def convolved(
    plane: tl.tensor,
    taps: tl.tensor,
    y0: tl.tensor,
    x0: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    K: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
    KW: tl.constexpr,
    FLIPPED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """A (BY, BX) tile of a plane's convolution in float32: for each row of the kernel one matrix product.

    A row of the image, times the Toeplitz matrix (KW, BX) of the kernel's row, is that row convolved.
    """
    total = tl.full((BY, BX), 0.0, tl.float32)
    x = x0 - K // 2 + tl.arange(0, KW)[None, :]
    tap = tl.arange(0, KW)[:, None] - tl.arange(0, BX)[None, :]
    in_band = (tap >= 0) & (tap < K)
    for ky in tl.static_range(K):
        y = y0 + ky - K // 2 + tl.arange(0, BY)[:, None]
        rows = tl.load(plane + y * W + x, mask=(y >= 0) & (y < H) & (x >= 0) & (x < W), other=0.0)
        at = (K - 1 - ky) * K + (K - 1 - tap) if FLIPPED else ky * K + tap
        band = tl.load(taps + at, mask=in_band, other=0.0)
        total += tl.dot(rows, band.to(rows.dtype), input_precision=PRECISION)
    return total


@jit
def sampled(
    planes: tl.tensor,
    row: tl.tensor,
    is_row: tl.tensor,
    token: tl.tensor,
    is_token: tl.tensor,
    h: tl.tensor,
    w: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
) -> tl.tensor:
    """Rows of channels (R, 1) at tokens (1, T) of the full grid, from planes of h x w by bilinear up-sampling."""
    plane = planes + row.to(tl.int64) * (h * w)
    mask = is_row & is_token
    if (h == H) & (w == W):
        found = tl.load(plane + token, mask=mask, other=0.0).to(tl.float32)
    else:
        y, x = token // W, token % W
        at_y = tl.maximum((y.to(tl.float32) + 0.5) * (h / H) - 0.5, 0.0)
        at_x = tl.maximum((x.to(tl.float32) + 0.5) * (w / W) - 0.5, 0.0)
        y0, x0 = tl.minimum(at_y.to(tl.int32), h - 1), tl.minimum(at_x.to(tl.int32), w - 1)
        y1, x1 = tl.minimum(y0 + 1, h - 1), tl.minimum(x0 + 1, w - 1)
        down, right = at_y - y0, at_x - x0
        upper = tl.load(plane + y0 * w + x0, mask=mask, other=0.0).to(tl.float32) * (1 - right)
        upper += tl.load(plane + y0 * w + x1, mask=mask, other=0.0).to(tl.float32) * right
        lower = tl.load(plane + y1 * w + x0, mask=mask, other=0.0).to(tl.float32) * (1 - right)
        lower += tl.load(plane + y1 * w + x1, mask=mask, other=0.0).to(tl.float32) * right
        found = upper * (1 - down) + lower * down
    return found
