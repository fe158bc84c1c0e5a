"""Every gradient of a convolution by transforms in passes over memory (see ``triton_fft_passes``).

The names are those of ``triton_fft_backward``: u = pre x, z = h * u + bias, y = act(post z), and dz, du and dh of them.
``columns`` writes the columns' transforms of u to one set of planes. Where z is needed, ``rows`` makes it in another,
which ``between`` turns into the columns' transforms of dz in place, with no samples stored; else ``columns`` makes
these of dy. ``rows_backward`` goes through the rows of a channel one after the other: dz's become du's in place, and
the sum of D conj(U) over the batch and all blocks, in that order, becomes dh's row. ``gradients_back`` writes dx and
what belongs to it.

The du of a block reaches K - 1 samples further back than its dz, into the last samples of the block before. Blocks are
whole rows apart, so that a program meets these in its own columns: it goes through the blocks of its columns in order,
and hands them on through ``carried``.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import wide
from .triton_fft import _index, _zero
from .triton_fft_backward import _sum_gradient, _write
from .triton_fft_passes import _down, _frequency_places, _of_filter, _places, _program, _row, _row_back, _up


@triton.jit
def between(
    planes,  # (channels, rows, 2, N, R): of z, then of dz
    bias,
    post,
    dy,
    dpost,
    tables,
    sums,  # of dz of each program
    side,
    length,
    channels,
    rows,
    blocks,
    first_channel,
    steps,
    behind,
    bc,
    qb,
    qt,
    qc,
    gb,
    gt,
    gc,
    rt,  # strides of the results, whose batch stride is length * channels
    rc,
    NA: tl.constexpr,
    NB: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POST: tl.constexpr,
    NEEDS_POST: tl.constexpr,
    FAR: tl.constexpr,
):
    M: tl.constexpr = NA * NB * R
    tile, channel, row, b, block = _program(side, rows, blocks, 0, R // C)
    c = channel + first_channel
    at = planes + row * (2 * M) + _frequency_places(NA, NB, R, C, tile)
    re, im = _up(tables, tl.load(at), tl.load(at + M), tile, NA, NB, R, C, PRECISION)
    # Computed anew with what the compiler does not know to be zero, not kept in registers meanwhile.
    tile += _zero(tables, NA, NA)
    place = _places(NA, NB, R, C, tile)
    n = place.to(tl.int64) if FAR else place
    t = block * steps - behind
    high, shift = _index(length - t, 2 * M), 0.0
    if HAS_BIAS:
        shift = tl.load(bias + c * bc).to(tl.float32)
    of_dy, of_post = dy + b * gb + t * gt + c * gc, post + b * qb + t * qt + c * qc
    of_dpost = dpost + b * length * channels + c * rc + t * rt
    re = _sum_gradient(re, n, behind, high, shift, high >= 0, of_dy, of_post, of_dpost, gt, qt, rt, ACTIVATION,
                       HAS_POST, NEEDS_POST)  # fmt: skip
    im = _sum_gradient(im, n + M, behind, high, shift, high >= 0, of_dy, of_post, of_dpost, gt, qt, rt, ACTIVATION,
                       HAS_POST, NEEDS_POST)  # fmt: skip
    if HAS_BIAS:
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(re + im, 1), 0))
    tile += _zero(tables, NA, NA)
    re, im = _down(tables + _zero(tables, NA, NA), re, im, tile, NA, NB, R, C, PRECISION)
    at = planes + row * (2 * M) + _frequency_places(NA, NB, R, C, tile)
    tl.debug_barrier()
    tl.store(at, re)
    tl.store(at + M, im)


@triton.jit
def rows_backward(
    of_u,  # planes of u
    of_dz,  # of dz, then of du
    of_h,  # (channels, 2, N, R): of dh; may be those of u where a channel has one row
    spectrum,  # (filters, 2, N, R)
    tables,
    each,  # rows of planes, of N, that belong to a channel
    first_channel,
    group,
    first_filter,
    N: tl.constexpr,
    R: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    PRECISION: tl.constexpr,
    OF_FILTERS: tl.constexpr,
    SEVERAL: tl.constexpr,  # each is not 1
):
    M: tl.constexpr = N * R
    LAST: tl.constexpr = N3 if N3 > 1 else N2
    program = tl.program_id(0)
    channel, k = program // N, program % N
    at_h = spectrum + wide((channel + first_channel) // group - first_filter) * (2 * M) + k * R
    sum_re, sum_im = tl.zeros([R // LAST, LAST], tl.float32), tl.zeros([R // LAST, LAST], tl.float32)
    for item in range(each):
        zero = _zero(tables, N1, N1) if SEVERAL else 0  # places are computed anew, not kept through the loop
        at = (wide(channel) * each + item) * (2 * M) + k * R
        d_re, d_im = _row(tables, of_dz + at, zero, M, N1, N2, N3, PRECISION)
        re, im = _row(tables, of_u + at, zero, M, N1, N2, N3, PRECISION)
        # dz times the conjugate of u: lag k has dh[k].
        sum_re += d_re * re + d_im * im
        sum_im += d_im * re - d_re * im
        re, im = _of_filter(tables, at_h, zero, M, N1, N2, N3, OF_FILTERS)
        _row_back(tables, of_dz + at, zero, d_re * re + d_im * im, d_im * re - d_re * im, M, N1, N2, N3, PRECISION)
    at = of_h + wide(channel) * (2 * M) + k * R
    _row_back(tables, at, 0, sum_re * (1.0 / M), sum_im * (1.0 / M), M, N1, N2, N3, PRECISION)


@triton.jit
def gradients_back(
    planes,  # (channels, batch, blocks, 2, N, R): of du
    x,
    pre,
    dx,
    dpre,
    dstate,
    carried,  # (programs, lines, C): what a block leaves to the one behind it
    tables,
    side,
    length,
    channels,
    batch,
    blocks,
    first_channel,
    taps,
    origin,
    steps,
    behind,
    xb,
    xt,
    xc,
    pb,
    pt,
    pc,
    rt,
    rc,
    NA: tl.constexpr,
    NB: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_PRE: tl.constexpr,
    OVERLAPS: tl.constexpr,  # there are several blocks, of several taps
    FAR: tl.constexpr,
):
    M: tl.constexpr = NA * NB * R
    tile, channel, row, b, _ = _program(side, batch, 1, 0, R // C)
    c = channel + first_channel
    of_x, of_pre, results = x + b * xb + c * xc, pre + b * pb + c * pc, b * length * channels + c * rc
    carried += wide(tl.program_id(0)) * (behind // R * C)
    for block in range(blocks):
        its_tile = tile + _zero(tables, NA, NA)
        at = planes + (row * blocks + block) * (2 * M) + _frequency_places(NA, NB, R, C, its_tile)
        re, im = _up(tables, tl.load(at), tl.load(at + M), its_tile, NA, NB, R, C, PRECISION)
        place = _places(NA, NB, R, C, tile + _zero(tables, NA, NA))
        start = wide(block) * steps - behind + origin
        low, high = _index(-start, 2 * M), _index(length - start, 2 * M)
        if OVERLAPS:
            # What the block before left of its last samples, then what is left of these.
            slot = carried + (place // R * C + place % C)
            shared = tl.where(block > 0, behind, 0)
            further = (steps - M) // R * C
            re += tl.load(slot, mask=place < shared, other=0.0)
            im += tl.load(slot + M // R * C, mask=place + M < shared, other=0.0)
            tl.debug_barrier()
            tl.store(slot - (further + M // R * C), re, mask=place >= steps)
            tl.store(slot - further, im, mask=place + M >= steps)
            tl.debug_barrier()
            high = tl.minimum(high, tl.where(block + 1 < blocks, steps, 2 * M))
        n = place.to(tl.int64) if FAR else place
        if HAS_STATE:
            past = tl.where(block == 0, behind, 0)
            of_state = dstate + (b * (taps - 1) - (behind - (taps - 1))) * channels + c
            is_past = (n >= behind - (taps - 1)) & (n < past)
            tl.store(of_state + wide(n) * channels, re, mask=is_past)
            is_past = (n + M >= behind - (taps - 1)) & (n + M < past)
            tl.store(of_state + wide(n + M) * channels, im, mask=is_past)
        t, of_dx = start * xt, results + start * rt
        _write(re, n, low, high, 0, of_x + t, of_pre + start * pt, dx + of_dx, dpre + of_dx, dstate, channels, xt, pt,
               rt, False, HAS_PRE)  # fmt: skip
        _write(im, n + M, low, high, 0, of_x + t, of_pre + start * pt, dx + of_dx, dpre + of_dx, dstate, channels, xt,
               pt, rt, False, HAS_PRE)  # fmt: skip
