"""Every gradient of a short convolution in one pass over x and dy, on a GPU.

With u = pre x, z = h * u + bias, w = post z, y = act(w): dw = dy act'(w), dpost = dw z, dz = post dw,
du[j] = sum_k h[k] dz[j+k], dx = pre du, dpre = x du, dh[k] = sum_t dz[t] u[t-k], dbias = sum_t dz[t]. Nothing of these
but the results is stored: z is computed again.

``rolling`` is for contiguous channels: a thread goes along time with the last K samples and the last K values of dz of
its channels in registers; du comes K - 1 steps after dz.

``tile`` takes every memory order and packed sequences. It computes dz of each of the K steps that a sample reaches,
from samples in the first-level cache: K^2 loads where there is an activation. With HEAD it computes du of the K - 1
samples before each sequence, which is the gradient of the initial state.

What sums over time is left as partial sums of chunks, which the caller adds in a fixed order.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activation_gradient, wide


@triton.jit
def rolling(
    x,
    h,
    bias,
    state,
    pre,
    post,
    dy,
    dx,
    dpre,
    dpost,
    dstate,
    partial,
    length,
    channels,
    batch,
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
    gb,
    gt,
    gc,
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
    """dx, dpre, dpost and dstate are contiguous."""
    program = tl.program_id(0)
    ct = program % channel_tiles
    chunk = (program // channel_tiles) % chunks
    b = wide(program // (channel_tiles * chunks))
    c = wide(ct * CHANNELS + tl.arange(0, CHANNELS))
    inside = c < channels
    begin = wide(chunk * STEPS)
    end = tl.minimum(begin + STEPS, length)
    first_output = begin
    if HAS_STATE:
        first_output = tl.where(begin == 0, begin - (K - 1), begin)
    x += b * xb + c * xc
    pre += b * pb + c * pc
    post += b * qb + c * qc
    dy += b * gb + c * gc
    full = (b * length) * channels + c  # of contiguous results
    h += b * hb + (c // group) * hc
    state += b * sb + c * sc
    dstate += b * (K - 1) * channels + c
    taps = ()
    sums = ()
    zeros = tl.zeros([CHANNELS], WIDE)
    for k in tl.static_range(K):
        taps = taps + (tl.load(h + wide(k) * hk, mask=inside, other=0.0).to(WIDE),)
        sums = sums + (zeros,)
    of_bias = zeros
    shift = zeros
    if HAS_BIAS:
        shift = tl.load(bias + b * bb + c * bc, mask=inside, other=0.0).to(WIDE)
    samples = ()
    gradients = ()
    for k in tl.static_range(K - 1):
        j = begin - (K - 1) + k
        u = tl.load(x + j * xt, mask=inside & (j >= 0), other=0.0).to(WIDE)
        if HAS_PRE:
            u *= tl.load(pre + j * pt, mask=inside & (j >= 0), other=0.0).to(WIDE)
        if HAS_STATE:
            u += tl.load(state + (j + K - 1) * st, mask=inside & (j < 0), other=0.0).to(WIDE)
        samples = samples + (u,)
        gradients = gradients + (zeros,)
    for first in range(begin, end + (K - 1), UNROLL):
        t0 = wide(first)
        arriving = ()
        for i in tl.static_range(UNROLL):
            there = inside & (t0 + i < length)
            u = tl.load(x + (t0 + i) * xt, mask=there, other=0.0).to(WIDE)
            if HAS_PRE:
                u *= tl.load(pre + (t0 + i) * pt, mask=there, other=0.0).to(WIDE)
            samples = samples + (u,)
            arriving = arriving + (tl.load(dy + (t0 + i) * gt, mask=there, other=0.0).to(WIDE),)
        for i in tl.static_range(UNROLL):
            t = t0 + i
            mine = inside & (t < end)
            dw = arriving[i]
            dz = dw
            if (ACTIVATION is not None) or HAS_POST:
                z = shift
                for k in tl.static_range(K):
                    z += taps[k] * samples[i + K - 1 - k]
                gate = zeros + 1.0
                if HAS_POST:
                    gate = tl.load(post + t * qt, mask=inside & (t < length), other=0.0).to(WIDE)
                if ACTIVATION is not None:
                    dw *= activation_gradient(gate * z, ACTIVATION)
                if HAS_POST:
                    tl.store(dpost + full + t * channels, dw * z, mask=mine)
                dz = dw * gate
            gradients = gradients + (dz,)
            counted = tl.where(t < end, dz, zeros)
            of_bias += counted
            more = ()
            for k in tl.static_range(K):
                more = more + (sums[k] + counted * samples[i + K - 1 - k],)
            sums = more
            j = t - (K - 1)
            du = zeros
            for k in tl.static_range(K):
                du += taps[k] * gradients[i + k]
            if HAS_STATE:
                tl.store(dstate + (j + K - 1) * channels, du, mask=inside & (j < 0) & (j >= first_output))
            here = inside & (j >= begin) & (j < end)
            if HAS_PRE:
                tl.store(dpre + full + j * channels, du * tl.load(x + j * xt, mask=here, other=0.0).to(WIDE), mask=here)
                du *= tl.load(pre + j * pt, mask=here, other=0.0).to(WIDE)
            tl.store(dx + full + j * channels, du, mask=here)
        samples = samples[UNROLL:]
        gradients = gradients[UNROLL:]
    partial += (wide(chunk) * batch + b) * (K + 1) * channels + c
    for k in tl.static_range(K):
        tl.store(partial + k * wide(channels), sums[k], mask=inside)
    tl.store(partial + K * wide(channels), of_bias, mask=inside)


@triton.jit
def _gated(x, pre, state, t, low, s, inside, c, xt, xc, pt, pc, ss, st, sc, K: tl.constexpr, HAS_PRE: tl.constexpr,
           HAS_STATE: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """u[t], of samples before the sequence from its state; ``inside`` says which t are not behind the end."""
    there = inside & (t >= low)
    u = tl.load(x + t * xt + c * xc, mask=there, other=0.0).to(WIDE)
    if HAS_PRE:
        u *= tl.load(pre + t * pt + c * pc, mask=there, other=0.0).to(WIDE)
    if HAS_STATE:
        before = t - low
        past = inside & (before < 0) & (before > -K)
        u += tl.load(state + s * ss + (K - 1 + before) * st + c * sc, mask=past, other=0.0).to(WIDE)
    return u


@triton.jit
def tile(
    x,
    h,
    bias,
    state,
    pre,
    post,
    dy,
    dx,
    dpre,
    dpost,
    dstate,
    partial,
    bounds,
    sequence_of,
    length,
    channels,
    batch,
    group,
    chunks,
    channel_tiles,
    steps,
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
    gb,
    gt,
    gc,
    rt,  # strides of the results, whose batch stride is length * channels
    rc,
    K: tl.constexpr,
    TIME: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    PACKED: tl.constexpr,
    HEAD: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    ct = program % channel_tiles
    chunk = (program // channel_tiles) % chunks  # with HEAD, a sequence
    b = wide(program // (channel_tiles * chunks))
    c = wide(ct * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    in_channels = c < channels
    x += b * xb
    pre += b * pb
    post += b * qb
    dy += b * gb
    h += b * hb + (c // group) * hc
    state += b * sb
    results = b * length * channels
    zeros = tl.zeros([TIME, CHANNELS], WIDE)
    shift = tl.zeros([1, CHANNELS], WIDE)
    if HAS_BIAS:
        shift += tl.load(bias + b * bb + c * bc, mask=in_channels, other=0.0).to(WIDE)
    sums = ()
    for k in tl.static_range(K + 1):
        sums = sums + (zeros,)
    begin = wide(chunk) * steps
    end = tl.minimum(begin + steps, length)
    if HEAD:
        begin, end = wide(0), wide(TIME)
    for first in range(begin, end, TIME):
        t = wide(first + tl.arange(0, TIME))
        s = wide(t * 0)
        low, high = wide(t * 0), wide(t * 0 + length)
        if PACKED:
            s = s + chunk
            if not HEAD:
                s = tl.load(sequence_of + t, mask=t < end, other=0).to(tl.int64)
            low, high = tl.load(bounds + s), tl.load(bounds + s + 1)
        if HEAD:
            t = low - (K - 1) + t
        t, low, high, s = t[:, None], low[:, None], high[:, None], s[:, None]
        mine = in_channels & (t < end) & (t >= low)
        du = zeros
        for reach in tl.static_range(K):
            at = t + reach
            # Steps of the same sequence that the sample reaches.
            there = in_channels & (at >= low) & (at < high)
            dw = tl.load(dy + at * gt + c * gc, mask=there, other=0.0).to(WIDE)
            z = zeros + shift
            if (ACTIVATION is not None) or (reach == 0):
                more = ()
                for k in tl.static_range(K):
                    w = tl.load(h + wide(k) * hk, mask=in_channels, other=0.0).to(WIDE)
                    u = _gated(
                        x, pre, state, at - k, low, s, there, c, xt, xc, pt, pc, ss, st, sc, K, HAS_PRE, HAS_STATE, WIDE
                    )
                    z += w * u
                    more = more + (u,)
            gate = zeros + 1.0
            if HAS_POST:
                gate = tl.load(post + at * qt + c * qc, mask=there, other=0.0).to(WIDE)
            if ACTIVATION is not None:
                dw *= activation_gradient(gate * z, ACTIVATION)
            dz = dw * gate
            if reach == 0:
                if not HEAD:
                    if HAS_POST:
                        tl.store(dpost + results + t * rt + c * rc, dw * z, mask=mine)
                    counted = tl.where(mine, dz, 0.0)
                    total = ()
                    for k in tl.static_range(K):
                        total = total + (sums[k] + counted * more[k],)
                    sums = total + (sums[K] + counted,)
            du += tl.load(h + wide(reach) * hk, mask=in_channels, other=0.0).to(WIDE) * dz
        if HEAD:
            j = t - low + K - 1
            where = dstate + ((b * chunks + chunk) * (K - 1) + j) * channels + c
            tl.store(where, du, mask=in_channels & (j < K - 1))
        else:
            if HAS_PRE:
                taken = tl.load(x + t * xt + c * xc, mask=mine, other=0.0).to(WIDE)
                tl.store(dpre + results + t * rt + c * rc, du * taken, mask=mine)
                du *= tl.load(pre + t * pt + c * pc, mask=mine, other=0.0).to(WIDE)
            tl.store(dx + results + t * rt + c * rc, du, mask=mine)
    if not HEAD:
        column = wide(ct * CHANNELS + tl.arange(0, CHANNELS))
        partial += (wide(chunk) * batch + b) * (K + 1) * channels + column
        for k in tl.static_range(K + 1):
            tl.store(partial + k * wide(channels), tl.sum(sums[k], 0), mask=column < channels)
