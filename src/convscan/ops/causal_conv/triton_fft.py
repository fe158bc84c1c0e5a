"""Convolution with long filters by one complex transform a block, on a GPU's tensor cores.

A real convolution modulo X^(2M) + 1 is a cyclic complex one of length M: z[n] = (u[n] + i u[n+M]) w^n, w = exp(i pi /
2M); transform, times the filter's transform, back, times w^-n; the real part is y[n], the imaginary part y[n+M]. The
first K - 1 of 2M results mix both ends; a program leaves them out, so that blocks of a long signal overlap by them.

The transform is Monarch's: M = N1 N2 ..., each step a product with the small matrix of a factor, rows times twiddles,
and a transposition which brings the next factor to the front (Dao et al., Monarch, 2022; Fu et al., FlashFFTConv,
2023).
The weights w^n are part of the first matrix and the first twiddles. Only a product lies between forward and back, so
that frequencies stay in the order they come in. Nothing but samples and the filter's transform is read or written.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import activate, dot, dot_halves, halves, wide


@triton.jit
def _product(a, b, c, d, PRECISION: tl.constexpr):
    """(a + i b)(c + i d) for matrices."""
    zeros = tl.zeros([a.shape[0], c.shape[1]], tl.float32)
    real, imaginary = zeros, zeros
    if PRECISION == "halves":
        # Each is cut in halves once, and one after the other: columns of 1024 points spill a hundred bytes less.
        a, a_rest = halves(a)
        b, b_rest = halves(b)
        c, c_rest = halves(c)
        real = dot_halves(a, a_rest, c, c_rest, real)
        imaginary = dot_halves(b, b_rest, c, c_rest, imaginary)
        d, d_rest = halves(d)
        real = dot_halves(-b, -b_rest, d, d_rest, real)
        imaginary = dot_halves(a, a_rest, d, d_rest, imaginary)
    else:
        real = dot(a, c, real, PRECISION)
        imaginary = dot(b, c, imaginary, PRECISION)
        real = dot(-b, d, real, PRECISION)
        imaginary = dot(a, d, imaginary, PRECISION)
    return real, imaginary


@triton.jit
def _levelled(re, im, PRECISION: tl.constexpr):
    """Where products are of float16, both times the power of two that brings the largest of them to 16 ... 32, and the
    inverse of that.

    A transform by up to three factors, the first two of 256 together, then stays below 2^14, and what float16 leaves
    off of small numbers is at most 2^-29 of the largest."""
    level = 1.0
    if PRECISION == "halves" or PRECISION == "nearest":
        re, im, level = _to_level(re, im)
    return re, im, level


@triton.jit
def _to_level(re, im):
    largest = tl.max(tl.max(tl.maximum(tl.abs(re), tl.abs(im)), 1), 0)
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 5), 254)
    down, up = (258 - exponent) << 23, (exponent - 4) << 23
    down = down.to(tl.float32, bitcast=True)
    return re * down, im * down, up.to(tl.float32, bitcast=True)


@triton.jit
def _step(
    matrix, twiddles, re, im, ROWS: tl.constexpr, N: tl.constexpr, REST: tl.constexpr, TWIDDLED: tl.constexpr,
    IS_REAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One factor forwards, of its N frequencies ROWS: (N, REST) to (REST, ROWS). IS_REAL says that im is zero."""
    k, n, rest = tl.arange(0, ROWS)[:, None], tl.arange(0, N)[None, :], tl.arange(0, REST)[None, :]
    f, g = tl.load(matrix + k * N + n), tl.load(matrix + ROWS * N + k * N + n)
    if IS_REAL:
        zeros = tl.zeros([ROWS, REST], tl.float32)
        re, im = dot(f, re, zeros, PRECISION), dot(g, re, zeros, PRECISION)
    else:
        re, im = _product(f, g, re, im, PRECISION)
    if TWIDDLED:
        c, s = tl.load(twiddles + k * REST + rest), tl.load(twiddles + ROWS * REST + k * REST + rest)
        re, im = re * c - im * s, re * s + im * c
    return tl.trans(re), tl.trans(im)


@triton.jit
def _repeated(x, ROWS: tl.constexpr, REST: tl.constexpr):
    """(ROWS, REST) as often as makes 16 rows, the least that a product sums over."""
    return tl.reshape(tl.broadcast_to(x[None, :, :], [16 // ROWS, ROWS, REST]), [16, REST])


@triton.jit
def _step_back(
    matrix, twiddles, re, im, ROWS: tl.constexpr, N: tl.constexpr, REST: tl.constexpr, TWIDDLED: tl.constexpr,
    IS_REAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The conjugate transpose of ``_step``: (REST, ROWS) to (N, REST). IS_REAL says that nobody needs im."""
    re, im = tl.trans(re), tl.trans(im)
    SUMMED: tl.constexpr = ROWS if ROWS > 16 else 16
    row, rest = tl.arange(0, ROWS)[:, None], tl.arange(0, REST)[None, :]
    k, n = tl.arange(0, N)[:, None], tl.arange(0, SUMMED)[None, :]
    if TWIDDLED:
        c, s = tl.load(twiddles + row * REST + rest), tl.load(twiddles + ROWS * REST + row * REST + rest)
        re, im = re * c + im * s, im * c - re * s
    # Transposed by its addresses, conjugated by its sign.
    if ROWS < 16:
        re, im = _repeated(re, ROWS, REST), _repeated(im, ROWS, REST)
        f, g = tl.load(matrix + n * N + k, mask=n < ROWS, other=0.0), -tl.load(
            matrix + ROWS * N + n * N + k, mask=n < ROWS, other=0.0)  # fmt: skip
    else:
        f, g = tl.load(matrix + n * N + k), -tl.load(matrix + ROWS * N + n * N + k)
    if IS_REAL:
        re = dot(f, re, tl.zeros([N, REST], tl.float32), PRECISION)
        re = dot(-g, im, re, PRECISION)
        im = re
    else:
        re, im = _product(f, g, re, im, PRECISION)
    return re, im


@triton.jit
def _zero(tables, ROWS: tl.constexpr, N1: tl.constexpr):
    """Zero, which the compiler does not know: the sine of the first table's first angle.

    With it added, what is computed from places is computed anew. Offsets, masks and twiddles would else be kept from
    one use to the next, or from before a loop, in registers that the transforms need: 1264 bytes of a thread's were
    spilled in ``convolution`` with every option, where none are now."""
    return tl.load(tables + ROWS * N1, volatile=True).to(tl.int32)


# A frequency k = k1 + N1 (k2 + N2 k3) is what the steps leave of it, digit after digit. A transform of a part of the
# frequencies has FIRST of the digits of the first step and LAST of those of the last one: their tables have no others.
# What FIRST leaves out is out of every step behind the first, what LAST leaves out is out of the last.


@triton.jit
def _forward_part(
    tables, re, im, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    IS_REAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(N1, N2 N3), with IS_REAL real ones, to frequencies, as (FIRST N2, LAST) or (FIRST, LAST)."""
    re, im, level = _levelled(re, im, PRECISION)
    tables += _zero(tables, FIRST, N1)
    second = tables + 2 * FIRST * N1 + 2 * FIRST * N2 * N3
    re, im = _step(tables, tables + 2 * FIRST * N1, re, im, FIRST, N1, N2 * N3, True, IS_REAL, PRECISION)
    re, im = tl.reshape(re, [N2, N3 * FIRST]), tl.reshape(im, [N2, N3 * FIRST])
    ROWS: tl.constexpr = N2 if N3 > 1 else LAST
    re, im = _step(second, second + 2 * ROWS * N2, re, im, ROWS, N2, N3 * FIRST, N3 > 1, False, PRECISION)
    if N3 > 1:
        third = second + 2 * N2 * N2 + 2 * FIRST * N2 * N3
        re, im = tl.reshape(re, [N3, FIRST * N2]), tl.reshape(im, [N3, FIRST * N2])
        re, im = _step(third, third, re, im, LAST, N3, FIRST * N2, False, False, PRECISION)
    return re * level, im * level


@triton.jit
def _back_part(
    tables, re, im, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    IS_REAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The way back, with IS_REAL of the real parts alone."""
    re, im, level = _levelled(re, im, PRECISION)
    tables += _zero(tables, FIRST, N1)
    second = tables + 2 * FIRST * N1 + 2 * FIRST * N2 * N3
    if N3 > 1:
        third = second + 2 * N2 * N2 + 2 * FIRST * N2 * N3
        re, im = _step_back(third, third, re, im, LAST, N3, FIRST * N2, False, False, PRECISION)
        re, im = tl.reshape(re, [N3 * FIRST, N2]), tl.reshape(im, [N3 * FIRST, N2])
    ROWS: tl.constexpr = N2 if N3 > 1 else LAST
    re, im = _step_back(second, second + 2 * ROWS * N2, re, im, ROWS, N2, N3 * FIRST, N3 > 1, False, PRECISION)
    re, im = tl.reshape(re, [N2 * N3, FIRST]), tl.reshape(im, [N2 * N3, FIRST])
    re, im = _step_back(tables, tables + 2 * FIRST * N1, re, im, FIRST, N1, N2 * N3, True, IS_REAL, PRECISION)
    return re * level, im * level


@triton.jit
def _forward(tables, re, im, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr):
    """(N1, N2 N3) to all frequencies, as (N1 N2, N3) or (N1, N2)."""
    return _forward_part(tables, re, im, N1, N2, N3, N1, N3 if N3 > 1 else N2, False, PRECISION)


@triton.jit
def _back(tables, re, im, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr):
    return _back_part(tables, re, im, N1, N2, N3, N1, N3 if N3 > 1 else N2, False, PRECISION)


@triton.jit
def _frequencies(N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    """Where each frequency of ``_forward`` is stored."""
    COLUMNS: tl.constexpr = N3 if N3 > 1 else N2
    return _grid(N1 * N2 * N3 // COLUMNS, COLUMNS)


@triton.jit
def _grid(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Places of a matrix that is stored by rows."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def spectra(
    h, tables, spectrum, taps, channels, batch_stride, hk, hc,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    IS_REAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The transform of a filter in each program, over M: real parts, then imaginary ones. IS_REAL says that no filter
    has more than M taps."""
    program = tl.program_id(0)
    c, b = program % channels, program // channels
    M: tl.constexpr = N1 * N2 * N3
    n = tl.arange(0, N1)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    h += wide(b) * batch_stride + wide(c) * hc
    re = tl.load(h + wide(n) * hk, mask=n < taps, other=0.0).to(tl.float32)
    im = re
    if not IS_REAL:
        im = tl.load(h + wide(n + M) * hk, mask=n + M < taps, other=0.0).to(tl.float32)
    re, im = _forward_part(tables, re, im, N1, N2, N3, FIRST, LAST, IS_REAL, PRECISION)
    ROWS: tl.constexpr = FIRST * N2 if N3 > 1 else FIRST
    at = spectrum + wide(program) * (2 * ROWS * LAST) + _grid(ROWS, LAST)
    tl.store(at, re * (1.0 / M))
    tl.store(at + ROWS * LAST, im * (1.0 / M))


@triton.jit
def _index(first, MOST: tl.constexpr):
    """A bound of the samples of a block as 32 bits, which its comparisons then take."""
    return tl.minimum(tl.maximum(first, 0), MOST).to(tl.int32)


@triton.jit
def _places_part(tables, FIRST: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, FAR: tl.constexpr):
    """The places of a block's samples, as 64 bits where strides carry them further than 32 bits reach."""
    n = _grid(N1, N2 * N3) + _zero(tables, FIRST, N1)
    return n.to(tl.int64) if FAR else n


@triton.jit
def _places(tables, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, FAR: tl.constexpr):
    return _places_part(tables, N1, N1, N2, N3, FAR)


@triton.jit
def _samples(x, pre, state, n, t0, length, K, xt, pt, st, MOST: tl.constexpr, HAS_PRE: tl.constexpr,
             HAS_STATE: tl.constexpr):  # fmt: skip
    """u[t0 + n] in float32, n below MOST: zero behind the end, of the initial state before the beginning."""
    low = _index(-t0, MOST)
    inside = (n >= low) & (n < _index(length - t0, MOST))
    u = tl.load(x + t0 * xt + n * xt, mask=inside, other=0.0).to(tl.float32)
    if HAS_PRE:
        u *= tl.load(pre + t0 * pt + n * pt, mask=inside, other=0.0).to(tl.float32)
    if HAS_STATE:
        past = (n < low) & (n >= _index(-t0 - (K - 1), MOST))
        u += tl.load(state + (t0 + K - 1) * st + n * st, mask=past, other=0.0).to(tl.float32)
    return u


@triton.jit
def _write(total, n, low, high, shift, post, y, qt, yt, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr,
           HAS_POST: tl.constexpr):  # fmt: skip
    """activation(post (total + shift)) where low <= n < high."""
    ready = (n >= low) & (n < high)
    if HAS_BIAS:
        total += shift
    if HAS_POST:
        total *= tl.load(post + n * qt, mask=ready, other=0.0).to(tl.float32)
    tl.store(y + n * yt, activate(total, ACTIVATION), mask=ready)


@triton.jit
def convolution(
    x,
    spectrum,
    bias,
    state,
    pre,
    post,
    y,
    tables,
    length,
    channels,
    taps,
    origin,
    group,
    filters,  # of each element of the batch where they differ, else 0
    blocks,
    channel_tiles,
    xb,
    xt,
    xc,
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
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    IS_REAL: tl.constexpr,  # one block of no more than M samples, which begins with the first
    CHANNELS: tl.constexpr,  # one after another
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    FAR: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0)
    M: tl.constexpr = N1 * N2 * N3
    ROWS: tl.constexpr = FIRST * N2 if N3 > 1 else FIRST
    ct = program % channel_tiles
    block = (program // channel_tiles) % blocks
    b = wide(program // (channel_tiles * blocks))
    # The first taps - 1 samples of a block lie before its results.
    t = wide(block) * (2 * M - (taps - 1)) - (taps - 1)
    high = _index(length - t, 2 * M)
    for index in range(CHANNELS):
        c = wide(ct) * CHANNELS + index
        if c < channels:
            of_x, of_pre, of_state = x + b * xb + c * xc, pre + b * pb + c * pc, state + b * sb + c * sc
            start = t + origin
            n = _places_part(tables, FIRST, N1, N2, N3, FAR)
            re = _samples(of_x, of_pre, of_state, n, start, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
            im = re
            if not IS_REAL:
                im = _samples(of_x, of_pre, of_state, n + M, start, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
            re, im = _forward_part(tables, re, im, N1, N2, N3, FIRST, LAST, IS_REAL, PRECISION)
            at = spectrum + (b * filters + c // group) * (2 * ROWS * LAST) + _grid(ROWS, LAST)
            p, q = tl.load(at).to(tl.float32), tl.load(at + ROWS * LAST).to(tl.float32)
            re, im = re * p - im * q, re * q + im * p
            re, im = _back_part(tables, re, im, N1, N2, N3, FIRST, LAST, IS_REAL, PRECISION)
            shift = 0.0
            if HAS_BIAS:
                shift = tl.load(bias + b * bb + c * bc).to(tl.float32)
            n = _places_part(tables, FIRST, N1, N2, N3, FAR)
            of_post, of_y = post + b * qb + t * qt + c * qc, y + b * yb + t * yt + c * yc
            _write(re, n, taps - 1, high, shift, of_post, of_y, qt, yt, ACTIVATION, HAS_BIAS, HAS_POST)
            if not IS_REAL:
                _write(im, n + M, taps - 1, high, shift, of_post, of_y, qt, yt, ACTIVATION, HAS_BIAS, HAS_POST)


@triton.jit
def filter_gradient(
    x,
    dz,
    state,
    x_gate,
    dz_gate,
    partial,  # (parts, groups of batch elements, channels, taps)
    tables,
    length,
    channels,
    batch,
    each,  # batch elements of a program
    taps,
    origin,
    blocks,
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
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_POST: tl.constexpr,
    FAR: tl.constexpr,
):
    """dh[k] = sum_t dz[t] u[t+origin-k], of a channel and some elements of the batch in each program: spectra of all
    their blocks are summed before one transform back. Blocks of dz have 2M - (K - 1) steps, those of u K - 1 more
    before them, so that no product reaches around."""
    program = tl.program_id(0)
    M: tl.constexpr = N1 * N2 * N3
    c = wide(program % channels)
    part = program // channels
    COLUMNS: tl.constexpr = N3 if N3 > 1 else N2
    sum_re = tl.zeros([M // COLUMNS, COLUMNS], tl.float32)
    sum_im = tl.zeros([M // COLUMNS, COLUMNS], tl.float32)
    steps = 2 * M - (taps - 1)
    for item in range(each * blocks):
        b = wide(part) * each + item // blocks
        if b < batch:
            start = wide(item % blocks) * steps
            first = start - (taps - 1) + origin
            n = _places(tables, N1, N2, N3, FAR)
            of_x, of_gate, of_state = x + b * xb + c * xc, x_gate + b * pb + c * pc, state + b * sb + c * sc
            re = _samples(of_x, of_gate, of_state, n, first, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
            im = _samples(of_x, of_gate, of_state, n + M, first, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
            re, im = _forward(tables, re, im, N1, N2, N3, PRECISION)
            of_dz, of_other = dz + b * zb + c * zc, dz_gate + b * qb + c * qc
            # Behind the first ``steps`` there are the zeros that the shifts of the taps need.
            end = tl.minimum(start + steps, length)
            n = _places(tables, N1, N2, N3, FAR)
            p = _samples(of_dz, of_other, of_dz, n, start, end, 1, zt, qt, 0, 2 * M, HAS_POST, False)
            q = _samples(of_dz, of_other, of_dz, n + M, start, end, 1, zt, qt, 0, 2 * M, HAS_POST, False)
            p, q = _forward(tables, p, q, N1, N2, N3, PRECISION)
            # u times the conjugate of dz: lag l has dh[K - 1 - l].
            sum_re += re * p + im * q
            sum_im += im * p - re * q
    re, im = _back(tables, sum_re * (1.0 / M), sum_im * (1.0 / M), N1, N2, N3, PRECISION)
    n = _places(tables, N1, N2, N3, FAR)
    at = partial + (wide(part) * channels + c) * taps
    tl.store(at + (taps - 1 - n), re, mask=n < taps)
    tl.store(at + (taps - 1 - n - M), im, mask=n + M < taps)
