"""Every gradient of a long convolution in one pass over x and dy, on a GPU's tensor cores.

With u = pre x, z = h * u + bias, w = post z, y = act(w): dw = dy act'(w), dpost = dw z, dz = post dw,
du[j] = sum_k h[k] dz[j+k], dx = pre du, dpre = x du, dh[k] = sum_t dz[t] u[t-k], dbias = sum_t dz[t].

Of a block of 2M samples, with U, H and D the transforms of u, h and dz (see ``triton_fft``), z is U H transformed back,
du is conj(H) D, and D conj(U), summed over all blocks of a channel, is the transform of dh. That is three transforms a
block and, where z is needed, one more; nothing of the input's size is stored but the gradients.

The first K - 1 results of a block mix both ends: dz is zero there, and what the other products wrap around lands in
places that are zero or not read. A block yields dz of 2M - (K - 1) steps, but its du reaches K - 1 samples further
back: these take what the block after them adds. A program goes through its blocks in order, and hands the sums of
these K - 1 samples on through ``carried``. Where several programs share a row, each computes the block behind its own
once more, for those samples alone.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activation_gradient, wide
from .triton_fft import _back, _forward, _frequencies, _index, _places, _samples


@triton.jit
def _sum_gradient(z, n, low, high, shift, own, dy, post, dpost, gt, qt, rt, ACTIVATION: tl.constexpr,
                  HAS_POST: tl.constexpr, NEEDS_POST: tl.constexpr):  # fmt: skip
    """dz of z + shift where low <= n < high, else zero; dpost is written where it is the program's own."""
    ready = (n >= low) & (n < high)
    dz = tl.load(dy + n * gt, mask=ready, other=0.0).to(tl.float32)
    if HAS_POST:
        gate = tl.load(post + n * qt, mask=ready, other=0.0).to(tl.float32)
        if ACTIVATION is not None:
            dz *= activation_gradient(gate * (z + shift), ACTIVATION)
        if NEEDS_POST:
            tl.store(dpost + n * rt, dz * (z + shift), mask=ready & own)
        dz *= gate
    elif ACTIVATION is not None:
        dz *= activation_gradient(z + shift, ACTIVATION)
    return dz


@triton.jit
def _write(du, n, low, high, past, x, pre, dx, dpre, dstate, channels, xt, pt, rt, HAS_STATE: tl.constexpr,
           HAS_PRE: tl.constexpr):  # fmt: skip
    """The gradients of samples low <= n < high from that of their products, and of the first ``past`` of states."""
    mine = (n >= low) & (n < high)
    if HAS_STATE:
        tl.store(dstate + wide(n) * channels, du, mask=n < past)
    if HAS_PRE:
        tl.store(dpre + n * rt, du * tl.load(x + n * xt, mask=mine, other=0.0).to(tl.float32), mask=mine)
        du *= tl.load(pre + n * pt, mask=mine, other=0.0).to(tl.float32)
    tl.store(dx + n * rt, du, mask=mine)


@triton.jit
def backward(
    x,
    spectrum,
    bias,
    state,
    pre,
    post,
    dy,
    dx,
    dpre,
    dpost,
    dstate,
    partial,  # (parts, channels, taps)
    of_bias,  # (parts, channels)
    carried,  # (programs, taps - 1)
    tables,
    length,
    channels,
    batch,
    each,  # batch elements of a program
    taps,
    origin,
    group,
    blocks,
    chunks,
    chunk_blocks,
    xb,
    xt,
    xc,
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
    rt,  # strides of the results, whose batch stride is length * channels
    rc,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    NEEDS_POST: tl.constexpr,
    OVERLAPS: tl.constexpr,  # there are several blocks, of several taps
    FAR: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    M: tl.constexpr = N1 * N2 * N3
    NEEDS_Z: tl.constexpr = (ACTIVATION is not None) or NEEDS_POST
    COLUMNS: tl.constexpr = N3 if N3 > 1 else N2
    c = wide(program % channels)
    part = program // channels
    chunk = part % chunks
    frequencies = spectrum + (c // group) * (2 * M) + _frequencies(N1, N2, N3)
    carried += wide(program) * (taps - 1)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + c * bc).to(tl.float32)
    sum_re = tl.zeros([M // COLUMNS, COLUMNS], tl.float32)
    sum_im = tl.zeros([M // COLUMNS, COLUMNS], tl.float32)
    bias_sum = 0.0
    steps = 2 * M - (taps - 1)
    own_blocks = tl.minimum(chunk_blocks, blocks - chunk * chunk_blocks)
    items = own_blocks
    if OVERLAPS:
        items = tl.minimum(chunk_blocks + 1, blocks - chunk * chunk_blocks)
    for item in range(each * items):
        b = wide(part // chunks) * each + item // items
        index = item % items
        if b < batch:
            own = index < own_blocks
            block = chunk * chunk_blocks + index
            t = wide(block) * steps - (taps - 1)
            start, results = t + origin, b * length * channels + c * rc
            of_x, of_pre, of_state = x + b * xb + c * xc, pre + b * pb + c * pc, state + b * sb + c * sc
            n = _places(tables, N1, N2, N3, FAR)
            re = _samples(of_x, of_pre, of_state, n, start, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
            im = _samples(of_x, of_pre, of_state, n + M, start, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
            u_re, u_im = _forward(tables, re, im, N1, N2, N3, PRECISION)
            if NEEDS_Z:
                p, q = tl.load(frequencies).to(tl.float32), tl.load(frequencies + M).to(tl.float32)
                re, im = _back(tables, u_re * p - u_im * q, u_re * q + u_im * p, N1, N2, N3, PRECISION)
            high = _index(length - t, 2 * M)
            n = _places(tables, N1, N2, N3, FAR)
            of_dy, of_post = dy + b * gb + t * gt + c * gc, post + b * qb + t * qt + c * qc
            of_dpost = dpost + results + t * rt
            re = _sum_gradient(re, n, taps - 1, high, shift, own, of_dy, of_post, of_dpost, gt, qt, rt, ACTIVATION,
                               HAS_POST, NEEDS_POST)  # fmt: skip
            im = _sum_gradient(im, n + M, taps - 1, high, shift, own, of_dy, of_post, of_dpost, gt, qt, rt, ACTIVATION,
                               HAS_POST, NEEDS_POST)  # fmt: skip
            if HAS_BIAS:
                bias_sum += tl.where(own, tl.sum(tl.sum(re + im, 1), 0), 0.0)
            re, im = _forward(tables, re, im, N1, N2, N3, PRECISION)
            # dz times the conjugate of u: lag k has dh[k].
            sum_re += tl.where(own, re * u_re + im * u_im, 0.0)
            sum_im += tl.where(own, im * u_re - re * u_im, 0.0)
            p, q = tl.load(frequencies).to(tl.float32), tl.load(frequencies + M).to(tl.float32)
            re, im = _back(tables, re * p + im * q, im * p - re * q, N1, N2, N3, PRECISION)
            n = _places(tables, N1, N2, N3, FAR)
            low, high = _index(-start, 2 * M), _index(length - start, 2 * M)
            if OVERLAPS:
                # What the block before left of its last samples, then what is left of these.
                shared = tl.where(index > 0, taps - 1, 0)
                re += tl.load(carried + n, mask=n < shared, other=0.0)
                im += tl.load(carried + n + M, mask=n + M < shared, other=0.0)
                tl.debug_barrier()
                tl.store(carried + n - steps, re, mask=n >= steps)
                tl.store(carried + n + M - steps, im, mask=n + M >= steps)
                tl.debug_barrier()
                low = tl.maximum(low, tl.where((index == 0) & (chunk > 0), taps - 1, 0))
                high = tl.minimum(high, tl.where(own, tl.where(block + 1 < blocks, steps, 2 * M), taps - 1))
            past = tl.where(block == 0, taps - 1, 0)
            of_x, of_pre, of_dx = of_x + start * xt, of_pre + start * pt, results + start * rt
            of_dstate = dstate + b * (taps - 1) * channels + c
            _write(re, n, low, high, past, of_x, of_pre, dx + of_dx, dpre + of_dx, of_dstate, channels, xt, pt, rt,
                   HAS_STATE, HAS_PRE)  # fmt: skip
            _write(im, n + M, low, high, past, of_x, of_pre, dx + of_dx, dpre + of_dx, of_dstate, channels, xt, pt, rt,
                   HAS_STATE, HAS_PRE)  # fmt: skip
    re, im = _back(tables, sum_re * (1.0 / M), sum_im * (1.0 / M), N1, N2, N3, PRECISION)
    n = _places(tables, N1, N2, N3, FAR)
    at = partial + (wide(part) * channels + c) * taps + n
    tl.store(at, re, mask=n < taps)
    tl.store(at + M, im, mask=n + M < taps)
    if HAS_BIAS:
        tl.store(of_bias + wide(part) * channels + c, bias_sum)
