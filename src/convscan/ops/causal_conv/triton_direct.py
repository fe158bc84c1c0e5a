"""Convolution as a sum over taps, on a GPU.

``tile`` computes a tile of time and channels and reads the samples of every tap anew: from the first-level cache, whose
bandwidth is several times the memory's, so that up to about eight taps cost nothing. It takes every memory order,
boundaries of packed sequences, and filters of any length.

``rolling`` is for channels that are contiguous: a thread keeps the last K samples of its channels in registers and goes
along time, so that every sample is loaded once, however many taps there are. Between unrolled steps the samples change
their names, not their registers.

Both go backwards in time where the caller hands over negative time strides. Gates, bias, activation and initial state
are part of the same pass.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activate, wide


@triton.jit
def _sample(x, gate, j, low, high, c, in_channels, xt, xc, gt, gc, GATED: tl.constexpr, WIDE: tl.constexpr):
    """gate[j] x[j] where low <= j < high, else 0; j, low and high are columns."""
    inside = (j >= low) & (j < high) & in_channels
    u = tl.load(x + j * xt + c * xc, mask=inside, other=0.0).to(WIDE)
    if GATED:
        u *= tl.load(gate + j * gt + c * gc, mask=inside, other=0.0).to(WIDE)
    return u


@triton.jit
def tile(
    x,
    h,
    bias,
    state,
    pre,
    post,
    y,
    bounds,
    sequence_of,
    length,
    channels,
    taps,
    origin,
    group,
    time_tiles,
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
    ss,
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
    K: tl.constexpr,  # the taps where they are few enough to unroll, else 0
    TIME: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    PACKED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    ct = program % channel_tiles
    tt = (program // channel_tiles) % time_tiles
    b = wide(program // (channel_tiles * time_tiles))
    c = wide(ct * CHANNELS + tl.arange(0, CHANNELS))
    t = wide(tt * TIME + tl.arange(0, TIME))
    in_channels = (c < channels)[None, :]
    in_time = t < length
    low, high = wide(t * 0), wide(t * 0 + length)
    s = wide(t * 0)
    if PACKED:
        at = t
        if BACKWARDS:
            at = length - 1 - t
        s = tl.load(sequence_of + at, mask=in_time, other=0).to(tl.int64)
        begin = tl.load(bounds + s, mask=in_time, other=0).to(tl.int64)
        end = tl.load(bounds + s + 1, mask=in_time, other=0).to(tl.int64)
        if BACKWARDS:
            low, high = length - end, length - begin
        else:
            low, high = begin, end
    x += b * xb
    h += b * hb + (c // group) * hc
    y += b * yb
    pre += b * pb
    post += b * qb
    state += b * sb
    column = c[None, :]
    low, high, j0 = low[:, None], high[:, None], (t + origin)[:, None]
    sums = tl.zeros([TIME, CHANNELS], WIDE)
    if K > 0:
        for k in tl.static_range(K):
            w = tl.load(h + wide(k) * hk, mask=c < channels, other=0.0).to(WIDE)[None, :]
            u = _sample(x, pre, j0 - k, low, high, column, in_channels, xt, xc, pt, pc, HAS_PRE, WIDE)
            sums += w * u
    else:
        for k in range(taps):
            w = tl.load(h + wide(k) * hk, mask=c < channels, other=0.0).to(WIDE)[None, :]
            u = _sample(x, pre, j0 - k, low, high, column, in_channels, xt, xc, pt, pc, HAS_PRE, WIDE)
            sums += w * u
    if HAS_STATE:
        # What lies before a sequence; of most tiles nothing is read.
        for k in range(taps):
            before = j0 - k - low
            inside = (before < 0) & (before > -taps) & in_channels & in_time[:, None]
            w = tl.load(h + wide(k) * hk, mask=c < channels, other=0.0).to(WIDE)[None, :]
            where = state + (s * ss)[:, None] + (taps - 1 + before) * st + column * sc
            sums += w * tl.load(where, mask=inside, other=0.0).to(WIDE)
    if HAS_BIAS:
        sums += tl.load(bias + b * bb + c * bc, mask=c < channels, other=0.0).to(WIDE)[None, :]
    inside = in_time[:, None] & in_channels
    if HAS_POST:
        sums *= tl.load(post + t[:, None] * qt + column * qc, mask=inside, other=0.0).to(WIDE)
    sums = activate(sums, ACTIVATION)
    tl.store(y + t[:, None] * yt + column * yc, sums, mask=inside)


@triton.jit
def rolling(
    x,
    h,
    bias,
    state,
    pre,
    post,
    y,
    length,
    channels,
    origin,
    group,
    chunks,
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
    K: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    ct = program % channel_tiles
    chunk = (program // channel_tiles) % chunks
    b = wide(program // (channel_tiles * chunks))
    c = wide(ct * CHANNELS + tl.arange(0, CHANNELS))
    inside = c < channels
    begin = wide(chunk * STEPS)
    end = tl.minimum(begin + STEPS, length)
    x += b * xb + c * xc
    y += b * yb + c * yc
    pre += b * pb + c * pc
    post += b * qb + c * qc
    h += b * hb + (c // group) * hc
    state += b * sb + c * sc
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(h + wide(k) * hk, mask=inside, other=0.0).to(WIDE),)
    shift = tl.zeros([CHANNELS], WIDE)
    if HAS_BIAS:
        shift = tl.load(bias + b * bb + c * bc, mask=inside, other=0.0).to(WIDE)
    # The samples before the chunk, oldest first.
    window = ()
    for k in tl.static_range(K - 1):
        j = begin + origin - (K - 1) + k
        u = tl.load(x + j * xt, mask=inside & (j >= 0) & (j < length), other=0.0).to(WIDE)
        if HAS_PRE:
            u *= tl.load(pre + j * pt, mask=inside & (j >= 0) & (j < length), other=0.0).to(WIDE)
        if HAS_STATE:
            u += tl.load(state + (j + K - 1) * st, mask=inside & (j < 0), other=0.0).to(WIDE)
        window = window + (u,)
    for first in range(begin, end, UNROLL):
        t = wide(first)
        # All loads of a block are under way before the first sum.
        for i in tl.static_range(UNROLL):
            j = t + origin + i
            u = tl.load(x + j * xt, mask=inside & (j >= 0) & (j < length), other=0.0).to(WIDE)
            if HAS_PRE:
                u *= tl.load(pre + j * pt, mask=inside & (j >= 0) & (j < length), other=0.0).to(WIDE)
            window = window + (u,)
        for i in tl.static_range(UNROLL):
            sums = shift
            for k in tl.static_range(K):
                sums += taps[k] * window[i + K - 1 - k]
            now = inside & (t + i < end)
            if HAS_POST:
                sums *= tl.load(post + (t + i) * qt, mask=now, other=0.0).to(WIDE)
            tl.store(y + (t + i) * yt, activate(sums, ACTIVATION), mask=now)
        window = window[UNROLL:]


@triton.jit
def filter_gradient_tile(
    x,
    dz,
    state,
    x_gate,
    dz_gate,
    partial,
    bounds,
    sequence_of,
    length,
    channels,
    taps,
    origin,
    chunks,
    channel_tiles,
    steps,
    xb,
    xt,
    xc,
    zb,
    zt,
    zc,
    sb,
    ss,
    st,
    sc,
    pb,
    pt,
    pc,
    qb,
    qt,
    qc,
    TIME: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,  # taps of one program
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    PACKED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """partial[chunk, b, k, c] = sum over the chunk's steps of dz_gate dz[t] (x_gate x)[t + origin - k]."""
    # Programs of the same samples follow one another.
    tap_tiles = (taps + K - 1) // K
    program, first_tap = tl.program_id(0) // tap_tiles, (tl.program_id(0) % tap_tiles) * K
    ct = program % channel_tiles
    chunk = (program // channel_tiles) % chunks
    b = program // (channel_tiles * chunks)
    batch = wide(b)
    c = wide(ct * CHANNELS + tl.arange(0, CHANNELS))
    column = c[None, :]
    in_channels = (c < channels)[None, :]
    x += batch * xb
    dz += batch * zb
    x_gate += batch * pb
    dz_gate += batch * qb
    state += batch * sb
    sums = ()
    for k in tl.static_range(K):
        sums = sums + (tl.zeros([TIME, CHANNELS], WIDE),)
    begin = wide(chunk) * steps
    end = tl.minimum(begin + steps, length)
    for first in range(begin, end, TIME):
        t = wide(first + tl.arange(0, TIME))
        in_time = t < end
        inside = in_time[:, None] & in_channels
        g = tl.load(dz + t[:, None] * zt + column * zc, mask=inside, other=0.0).to(WIDE)
        if HAS_POST:
            g *= tl.load(dz_gate + t[:, None] * qt + column * qc, mask=inside, other=0.0).to(WIDE)
        low, high = wide(t * 0), wide(t * 0 + length)
        s = wide(t * 0)
        if PACKED:
            s = tl.load(sequence_of + t, mask=in_time, other=0).to(tl.int64)
            low = tl.load(bounds + s, mask=in_time, other=0).to(tl.int64)
            high = tl.load(bounds + s + 1, mask=in_time, other=0).to(tl.int64)
        more = ()
        for k in tl.static_range(K):
            j = (t + origin - (first_tap + k))[:, None]
            u = _sample(x, x_gate, j, low[:, None], high[:, None], column, in_channels, xt, xc, pt, pc, HAS_PRE, WIDE)
            if HAS_STATE:
                before = j - low[:, None]
                past = (before < 0) & (before > -taps) & inside
                where = state + (s * ss)[:, None] + (taps - 1 + before) * st + column * sc
                u += tl.load(where, mask=past, other=0.0).to(WIDE)
            more = more + (sums[k] + g * u,)
        sums = more
    partial += ((wide(chunk) * (tl.num_programs(0) // (tap_tiles * channel_tiles * chunks)) + b) * taps) * channels
    for k in tl.static_range(K):
        tap = first_tap + k
        where = partial + wide(tap) * channels + c
        tl.store(where, tl.sum(sums[k], 0), mask=(c < channels) & (tap < taps))
