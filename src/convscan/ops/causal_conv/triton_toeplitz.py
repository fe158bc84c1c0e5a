"""Convolution with filters of some dozens to a thousand taps as products of matrices, on a GPU's tensor cores.

Time in rows of N steps, X[r, j] = u[r N + j], makes a convolution a sum of products with Toeplitz blocks:

    Y[r, i] = sum_m sum_j X[r - m, j] T_m[j, i],    T_m[j, i] = h[i - j + m N]

of which there are 1 + ceil((K - 1) / N): the diagonal block and those left of it. A program computes a tile of rows, of
one batch element and channel after another where channels lie side by side, for memory to be read in whole sectors.

The gradient of the filter is sums over the same blocks' diagonals, G_m[j, i] = sum_r X[r - m, j] dZ[r, i]: a product
again, whose diagonals a second kernel sums.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activate, dot, wide


@triton.jit
def _samples(x, pre, state, j, length, xt, pt, st, K, HAS_PRE: tl.constexpr, HAS_STATE: tl.constexpr):
    """u[j] in float32: zero behind the end, of the initial state before the beginning."""
    inside = (j >= 0) & (j < length)
    u = tl.load(x + j * xt, mask=inside, other=0.0).to(tl.float32)
    if HAS_PRE:
        u *= tl.load(pre + j * pt, mask=inside, other=0.0).to(tl.float32)
    if HAS_STATE:
        u += tl.load(state + (j + K - 1) * st, mask=(j < 0) & (j > -K), other=0.0).to(tl.float32)
    return u


@triton.jit
def products(
    x,
    h,
    bias,
    state,
    pre,
    post,
    y,
    length,
    channels,
    taps,
    origin,
    group,
    row_tiles,
    channel_tiles,
    xb,
    xt,
    xc,
    hb,
    hk,
    hc,
    bb,
    bc,
    sb,
    st,
    sc,
    pb,
    pt,
    pc,
    qb,
    qt,
    qc,
    yb,
    yt,
    yc,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,  # one after another
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    ct = program % channel_tiles
    tile = (program // channel_tiles) % row_tiles
    b = wide(program // (channel_tiles * row_tiles))
    row = wide(tile * ROWS + tl.arange(0, ROWS))[:, None]
    i = tl.arange(0, N)
    t = row * N + i[None, :]
    lag = i[None, :] - i[:, None]  # i - j
    for index in range(CHANNELS):
        c = wide(ct) * CHANNELS + index
        if c < channels:
            of_x, of_pre, of_state = x + b * xb + c * xc, pre + b * pb + c * pc, state + b * sb + c * sc
            of_h = h + b * hb + (c // group) * hc
            total = tl.zeros([ROWS, N], tl.float32)
            for m in range(0, (taps - 1 + N - 1) // N + 1):
                u = _samples(of_x, of_pre, of_state, t + origin - m * N, length, xt, pt, st, taps, HAS_PRE, HAS_STATE)
                k = wide(lag + m * N)
                block = tl.load(of_h + k * hk, mask=(k >= 0) & (k < taps), other=0.0)
                if PRECISION == "half":
                    total = dot(u.to(HALF), block, total, PRECISION)
                else:
                    total = dot(u, block.to(tl.float32), total, PRECISION)
            if HAS_BIAS:
                total += tl.load(bias + b * bb + c * bc).to(tl.float32)
            inside = t < length
            if HAS_POST:
                total *= tl.load(post + b * qb + t * qt + c * qc, mask=inside, other=0.0).to(tl.float32)
            tl.store(y + b * yb + t * yt + c * yc, activate(total, ACTIVATION), mask=inside)


@triton.jit
def correlations(
    x,
    dz,
    state,
    x_gate,
    dz_gate,
    blocks,  # (chunks, batch, channels, matrices, N, N)
    length,
    channels,
    batch,
    taps,
    origin,
    chunks,
    matrices,
    steps,  # rows of a chunk
    xb,
    xt,
    xc,
    zb,
    zt,
    zc,
    sb,
    st,
    sc,
    pb,
    pt,
    pc,
    qb,
    qt,
    qc,
    ROWS: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
):
    """G_m of a chunk of rows; programs of the same rows follow one another."""
    program, m = tl.program_id(0) // matrices, tl.program_id(0) % matrices
    c = wide(program % channels)
    chunk = (program // channels) % chunks
    b = wide(program // (channels * chunks))
    i = tl.arange(0, N)
    x += b * xb + c * xc
    dz += b * zb + c * zc
    state += b * sb + c * sc
    x_gate += b * pb + c * pc
    dz_gate += b * qb + c * qc
    total = tl.zeros([N, N], tl.float32)
    for first in range(0, steps, ROWS):
        row = wide(chunk) * steps + first + tl.arange(0, ROWS)
        # Samples in columns of rows: the transpose of what ``products`` has.
        earlier = row[None, :] * N + wide(i)[:, None] + origin - m * N
        u = _samples(x, x_gate, state, earlier, length, xt, pt, st, taps, HAS_PRE, HAS_STATE)
        t = row[:, None] * N + i[None, :]
        inside = t < length
        g = tl.load(dz + t * zt, mask=inside, other=0.0).to(tl.float32)
        if HAS_POST:
            g *= tl.load(dz_gate + t * qt, mask=inside, other=0.0).to(tl.float32)
        total = dot(u, g, total, PRECISION)
    at = (((wide(chunk) * batch + b) * channels + c) * matrices + m) * N
    tl.store(blocks + (at + i[:, None]) * N + i[None, :], total)


@triton.jit
def diagonals(blocks, dh, taps, channels, matrices, N: tl.constexpr, TAPS: tl.constexpr):
    """dh[b, k, c] = sum_m sum_j G_m[j, k - m N + j]; ``blocks`` of (batch, channels, matrices, N, N)."""
    tap_tiles = (taps + TAPS - 1) // TAPS
    program = tl.program_id(0) // tap_tiles
    c = program % channels
    b = program // channels
    first_tap = (tl.program_id(0) % tap_tiles) * TAPS
    k = first_tap + tl.arange(0, TAPS)
    j = tl.arange(0, N)[None, :]
    total = tl.zeros([TAPS, N], tl.float32)
    first = first_tap // N
    for step in tl.static_range((TAPS + N - 1) // N + 1):
        m = first + step
        i = k[:, None] - m * N + j
        at = (((wide(b) * channels + c) * matrices + m) * N + j) * N + i
        total += tl.load(blocks + at, mask=(i >= 0) & (i < N) & (m < matrices), other=0.0)
    tl.store(dh + (wide(b) * taps + k) * channels + c, tl.sum(total, 1), mask=k < taps)
