"""A step of a convolution with the samples before it, which it overwrites, on a GPU.

A program has a tile of the channels of one sequence and goes along time by itself: a thread reads and writes its own
channels' samples only, so that what is overwritten was read before. The samples are the rows of ``state``, oldest
first, and move up by as many as come in; or, where ``taken`` counts what each sequence has had, a ring in which
sample t is at t modulo its size. ``rows`` names the row of ``state`` of each sequence. The host reads none of them.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activate, wide


@triton.jit
def step(
    x,
    state,
    h,
    bias,
    taken,
    rows,
    y,
    length,
    channels,
    taps,
    size,  # rows of a state
    pad,
    group,
    channel_tiles,
    xb,
    xt,
    xc,
    sb,
    st,
    sc,
    hk,
    hc,
    bc,
    yb,
    yt,
    yc,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_RING: tl.constexpr,
    PICKS_ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    c = wide(program % channel_tiles) * CHANNELS + tl.arange(0, CHANNELS)
    b = wide(program // channel_tiles)
    inside = c < channels
    row = b
    has_row = inside
    if PICKS_ROWS:
        row = tl.load(rows + b).to(tl.int64)
        has_row = inside & (row != pad)
        row = tl.where(row != pad, row, 0)
    x += b * xb + c * xc
    y += b * yb + c * yc
    state += row * sb + c * sc
    h += (c // group) * hc
    begin = wide(size)  # where the sample behind those of the state would be
    if IS_RING:
        begin = tl.load(taken + b).to(tl.int64)
    shift = tl.zeros([CHANNELS], WIDE)
    if HAS_BIAS:
        shift += tl.load(bias + c * bc, mask=inside, other=0.0).to(WIDE)
    for t in range(length):
        total = shift
        for k in range(taps):
            j = t - k
            place = begin + j
            if IS_RING:
                place = ((place % size) + size) % size
            u = tl.load(x + wide(j) * xt, mask=has_row & (j >= 0), other=0.0).to(WIDE)
            u += tl.load(state + place * st, mask=has_row & (j < 0), other=0.0).to(WIDE)
            total += u * tl.load(h + wide(k) * hk, mask=inside, other=0.0).to(WIDE)
        total = tl.where(has_row, activate(total, ACTIVATION), 0.0)
        tl.store(y + wide(t) * yt, total, mask=inside)
    if IS_RING:
        # Of more samples than the ring has room for, the last ones stay.
        for t in range(tl.maximum(length - size, 0), length):
            u = tl.load(x + wide(t) * xt, mask=has_row, other=0.0)
            tl.store(state + ((begin + t) % size) * st, u, mask=has_row)
    else:
        for s in range(size):
            j = s + length - size
            u = tl.load(x + wide(j) * xt, mask=has_row & (j >= 0), other=0.0).to(WIDE)
            u += tl.load(state + wide(s + length) * st, mask=has_row & (j < 0), other=0.0).to(WIDE)
            tl.store(state + wide(s) * st, u, mask=has_row)
