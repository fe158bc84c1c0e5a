"""Convolution by transforms longer than a program's registers hold, in three passes over memory.

A transform of M = N R points, the samples in N rows of R, is one of the columns, times twiddles, then one of each row
(Bailey, FFTs in external or hierarchical memory, 1990). ``columns`` reads samples and writes the columns' transforms,
``rows`` transforms each row, multiplies by the filter's transform and transforms back in place, ``columns_back`` writes
the result: what lies between is M complex numbers. The weights that make a real convolution of 2M samples of it (see
``triton_fft``) are part of the columns' matrix and twiddles. The filter's transform is made by the first two passes.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import wide
from .triton_fft import _back, _forward, _frequencies, _index, _product, _samples, _write


@triton.jit
def columns(
    x,
    pre,
    state,
    planes,  # (channels, batch, blocks, 2, N, R): real parts, then imaginary ones
    matrix,  # (2, N, N)
    twiddles,  # (2, N, R)
    length,
    batch,
    blocks,
    first_channel,
    taps,
    origin,
    steps,  # that the results of a block are further than those of the one before it
    behind,  # samples of a block before its results
    xb,
    xt,
    xc,
    pb,
    pt,
    pc,
    sb,
    st,
    sc,
    N: tl.constexpr,
    R: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_STATE: tl.constexpr,
    FAR: tl.constexpr,
):
    TILES: tl.constexpr = R // COLUMNS
    program = tl.program_id(0)
    tile = program % TILES
    row = program // TILES
    block = row % blocks
    b = wide((row // blocks) % batch)
    c = wide(row // (blocks * batch)) + first_channel
    k, column = tl.arange(0, N)[:, None], tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    place = k * R + column
    n = place.to(tl.int64) if FAR else place
    start = wide(block) * steps - behind + origin
    of_x, of_pre, of_state = x + b * xb + c * xc, pre + b * pb + c * pc, state + b * sb + c * sc
    MOST: tl.constexpr = 2 * N * R
    re = _samples(of_x, of_pre, of_state, n, start, length, taps, xt, pt, st, MOST, HAS_PRE, HAS_STATE)
    im = _samples(of_x, of_pre, of_state, n + N * R, start, length, taps, xt, pt, st, MOST, HAS_PRE, HAS_STATE)
    other = tl.arange(0, N)[None, :]
    f, g = tl.load(matrix + k * N + other), tl.load(matrix + N * N + k * N + other)
    re, im = _product(f, g, re, im, 1, PRECISION)
    p, q = tl.load(twiddles + place), tl.load(twiddles + N * R + place)
    at = planes + wide(row) * (2 * N * R) + place
    tl.store(at, re * p - im * q)
    tl.store(at + N * R, re * q + im * p)


@triton.jit
def rows(
    planes,
    spectrum,  # (filters, 2, N, R)
    tables,
    each,  # rows of planes, of N, that share a filter
    first_channel,
    group,
    N: tl.constexpr,
    R: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_FILTER: tl.constexpr,  # nothing to multiply by: scaled, in place
):
    program = tl.program_id(0)
    k = program % N
    row = program // N
    at = planes + wide(row) * (2 * N * R) + k * R
    n = tl.arange(0, N1)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :]
    re, im = _forward(tables, tl.load(at + n), tl.load(at + N * R + n), N1, N2, N3, PRECISION)
    frequencies = _frequencies(N1, N2, N3)
    if IS_FILTER:
        tl.debug_barrier()  # others of the program still read what is written here
        tl.store(at + frequencies, re * (1.0 / (N * R)))
        tl.store(at + N * R + frequencies, im * (1.0 / (N * R)))
    else:
        of_h = spectrum + wide((row // each + first_channel) // group) * (2 * N * R) + k * R + frequencies
        p, q = tl.load(of_h).to(tl.float32), tl.load(of_h + N * R).to(tl.float32)
        re, im = _back(tables, re * p - im * q, re * q + im * p, N1, N2, N3, PRECISION)
        tl.debug_barrier()
        tl.store(at + n, re)
        tl.store(at + N * R + n, im)


@triton.jit
def columns_back(
    planes,
    bias,
    post,
    y,
    matrix,
    twiddles,
    length,
    batch,
    blocks,
    first_channel,
    steps,
    behind,
    bb,
    bc,
    qb,
    qt,
    qc,
    yb,
    yt,
    yc,
    N: tl.constexpr,
    R: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POST: tl.constexpr,
    FAR: tl.constexpr,
):
    TILES: tl.constexpr = R // COLUMNS
    program = tl.program_id(0)
    tile = program % TILES
    row = program // TILES
    block = row % blocks
    b = wide((row // blocks) % batch)
    c = wide(row // (blocks * batch)) + first_channel
    k, column = tl.arange(0, N)[:, None], tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    place = k * R + column
    at = planes + wide(row) * (2 * N * R) + place
    re, im = tl.load(at), tl.load(at + N * R)
    p, q = tl.load(twiddles + place), tl.load(twiddles + N * R + place)
    re, im = re * p + im * q, im * p - re * q
    # The conjugate transpose, by its addresses and signs.
    other = tl.arange(0, N)[None, :]
    f, g = tl.load(matrix + other * N + k), -tl.load(matrix + N * N + other * N + k)
    re, im = _product(f, g, re, im, 1, PRECISION)
    n = place.to(tl.int64) if FAR else place
    t = wide(block) * steps - behind
    high = _index(length - t, 2 * N * R)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + b * bb + c * bc).to(tl.float32)
    of_post, of_y = post + b * qb + t * qt + c * qc, y + b * yb + t * yt + c * yc
    _write(re, n, behind, high, shift, of_post, of_y, qt, yt, ACTIVATION, HAS_BIAS, HAS_POST)
    _write(im, n + N * R, behind, high, shift, of_post, of_y, qt, yt, ACTIVATION, HAS_BIAS, HAS_POST)
