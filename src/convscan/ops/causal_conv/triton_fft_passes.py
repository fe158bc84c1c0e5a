"""Convolution by transforms longer than a program's registers hold, in three passes over memory.

A transform of M = N R points, the samples in N rows of R, is one of the columns, times twiddles, then one of each row
(Bailey, FFTs in external or hierarchical memory, 1990). ``columns`` reads samples and writes the columns' transforms,
``rows`` transforms each row, multiplies by the filter's transform and transforms back in place, ``columns_back`` writes
the result: what lies between is M complex numbers. The weights that make a real convolution of 2M samples of it (see
``triton_fft``) are part of the columns' matrices and twiddles. The filter's transform is made by the first two passes,
the second of which may be that of the samples too.

A program transforms C neighbouring columns of N = NA NB points, first over NA, then over NB: (NA, NB C) samples
become (NB, NA C) frequencies. Its pieces of C numbers are whole sectors of memory, and programs of neighbouring
columns, and of channels that lie side by side, run together.

A row is the residue of its frequencies modulo N. Of filters that keep a part of the frequencies, rows without any are
neither written nor transformed: planes and spectra then have KEPT rows, and ``slots`` has the place of each of N among
them, -1 of those that are left out.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import wide
from .triton_fft import _back, _forward, _frequencies, _index, _levelled, _product, _samples, _write


@triton.jit
def _lines(P: tl.constexpr, Q: tl.constexpr, C: tl.constexpr):
    """Of a tile (P, Q C) the line down a column, P Q of them, and the column."""
    beside = tl.arange(0, Q * C)[None, :]
    return tl.arange(0, P)[:, None] * Q + beside // C, beside % C


@triton.jit
def _turned(table, re, im, at, SIZE: tl.constexpr, SIGN: tl.constexpr):
    """Times numbers of a table, or their conjugates."""
    p, q = tl.load(table + at), SIGN * tl.load(table + SIZE + at)
    return re * p - im * q, re * q + im * p


@triton.jit
def _matrix(table, N: tl.constexpr, SIGN: tl.constexpr):
    """The matrix of a factor, or its conjugate transpose by addresses and signs."""
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = i * N + j if SIGN == 1 else j * N + i
    return tl.load(table + at), SIGN * tl.load(table + N * N + at)


@triton.jit
def _between(tables, re, im, tile, NA: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
             SIGN: tl.constexpr):  # fmt: skip
    """The twiddles between columns and rows, of which a table each has the tile's part and the column's."""
    N: tl.constexpr = NA * NB
    if NB > 1:
        line, column = _lines(NB, NA, C)
    else:
        line, column = _lines(NA, 1, C)
    re, im = _turned(tables + tile * N, re, im, line, N * (R // C), SIGN)
    return _turned(tables + 2 * N * (R // C), re, im, line * C + column, N * C, SIGN)


@triton.jit
def _down(tables, re, im, tile, NA: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """Samples of C columns, (NA, NB C), to their frequencies, (NB, NA C) or (NA, C)."""
    re, im, level = _levelled(re, im, PRECISION)
    f, g = _matrix(tables, NA, 1)
    re, im = _product(f, g, re, im, PRECISION)
    tables += 2 * NA * NA
    if NB > 1:
        line, _column = _lines(NA, NB, C)
        re, im = _turned(tables, re, im, line, NA * NB, 1)
        re = tl.reshape(tl.permute(tl.reshape(re, [NA, NB, C]), (1, 0, 2)), [NB, NA * C])
        im = tl.reshape(tl.permute(tl.reshape(im, [NA, NB, C]), (1, 0, 2)), [NB, NA * C])
        f, g = _matrix(tables + 2 * NA * NB, NB, 1)
        re, im = _product(f, g, re, im, PRECISION)
        tables += 2 * NA * NB + 2 * NB * NB
    return _between(tables, re * level, im * level, tile, NA, NB, R, C, 1)


@triton.jit
def _up(tables, re, im, tile, NA: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
        PRECISION: tl.constexpr):  # fmt: skip
    """The conjugate transpose of ``_down``."""
    re, im, level = _levelled(re, im, PRECISION)
    OF_B: tl.constexpr = 2 * NA * NA + 2 * NA * NB
    BEHIND: tl.constexpr = OF_B + 2 * NB * NB if NB > 1 else 2 * NA * NA
    re, im = _between(tables + BEHIND, re, im, tile, NA, NB, R, C, -1)
    if NB > 1:
        f, g = _matrix(tables + OF_B, NB, -1)
        re, im = _product(f, g, re, im, PRECISION)
        re = tl.reshape(tl.permute(tl.reshape(re, [NB, NA, C]), (1, 0, 2)), [NA, NB * C])
        im = tl.reshape(tl.permute(tl.reshape(im, [NB, NA, C]), (1, 0, 2)), [NA, NB * C])
        line, _column = _lines(NA, NB, C)
        re, im = _turned(tables + 2 * NA * NA, re, im, line, NA * NB, -1)
    f, g = _matrix(tables, NA, -1)
    re, im = _product(f, g, re, im, PRECISION)
    return re * level, im * level


@triton.jit
def _places(NA: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, C: tl.constexpr, tile):
    """Of a tile's samples, by row and column of the transform."""
    line, column = _lines(NA, NB, C)
    return line * R + tile * C + column


@triton.jit
def _frequency_places(NA: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, C: tl.constexpr, tile):
    """Of a tile's frequencies."""
    at, _all = _row_places(0, NA, NB, R, C, NA * NB, tile)
    return at


@triton.jit
def _row_places(slots, NA: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, C: tl.constexpr, KEPT: tl.constexpr, tile):
    """Where a tile's frequencies are in planes of KEPT rows, and which of them are there."""
    if NB > 1:
        line, column = _lines(NB, NA, C)
    else:
        line, column = _lines(NA, 1, C)
    if KEPT < NA * NB:
        line = tl.load(slots + line)
    return line * R + tile * C + column, line >= 0


@triton.jit
def _program(side, rows, blocks, first_row, TILES: tl.constexpr):
    """Tile, channel, row of planes, element of the batch and block of this program: channels side by side vary first,
    then tiles, then rows of a channel."""
    program = tl.program_id(0)
    tile, row = (program // side) % TILES, program // (side * TILES)
    channel = (row // rows) * side + program % side
    of_channel = row % rows
    block = first_row + of_channel
    return tile, wide(channel), wide(channel) * rows + of_channel, wide(block // blocks), wide(block % blocks)


@triton.jit
def columns(
    x,
    pre,
    state,
    planes,  # (channels, rows, 2, N, R): real parts, then imaginary ones
    tables,
    sums,  # of the samples of each program
    slots,
    side,
    length,
    rows,  # of a channel that are under way: blocks of elements of the batch
    blocks,
    first_channel,
    first_row,
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
    NA: tl.constexpr,
    NB: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_PRE: tl.constexpr,
    HAS_STATE: tl.constexpr,
    OF_RESULTS: tl.constexpr,  # zero where a block has none, as gradients are
    HAS_SUMS: tl.constexpr,
    KEPT: tl.constexpr,
    FAR: tl.constexpr,
):
    M: tl.constexpr = NA * NB * R
    tile, channel, row, b, block = _program(side, rows, blocks, first_row, R // C)
    c = channel + first_channel
    place = _places(NA, NB, R, C, tile)
    n = place.to(tl.int64) if FAR else place
    start = block * steps - behind + origin
    of_x, of_pre, of_state = x + b * xb + c * xc, pre + b * pb + c * pc, state + b * sb + c * sc
    re = _samples(of_x, of_pre, of_state, n, start, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
    im = _samples(of_x, of_pre, of_state, n + M, start, length, taps, xt, pt, st, 2 * M, HAS_PRE, HAS_STATE)
    if OF_RESULTS:
        re, im = tl.where(n >= behind, re, 0.0), tl.where(n + M >= behind, im, 0.0)
    if HAS_SUMS:
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(re + im, 1), 0))
    re, im = _down(tables, re, im, tile, NA, NB, R, C, PRECISION)
    at, is_kept = _row_places(slots, NA, NB, R, C, KEPT, tile)
    at += planes + row * (2 * KEPT * R)
    tl.store(at, re, mask=is_kept)
    tl.store(at + KEPT * R, im, mask=is_kept)


@triton.jit
def _row(
    tables, at, zero, M: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr
):
    """The transform of a row; ``zero`` is added to places."""
    n = tl.arange(0, N1)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :] + zero
    return _forward(tables, tl.load(at + n), tl.load(at + M + n), N1, N2, N3, PRECISION)


@triton.jit
def _row_back(tables, at, zero, re, im, M: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """Stores what a row's transform goes back to."""
    re, im = _back(tables, re, im, N1, N2, N3, PRECISION)
    n = tl.arange(0, N1)[:, None] * (N2 * N3) + tl.arange(0, N2 * N3)[None, :] + zero
    tl.debug_barrier()  # others of the program may still read what is written here
    tl.store(at + n, re)
    tl.store(at + M + n, im)


@triton.jit
def _of_filter(tables, at, zero, M: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """A row of a filter's transform, divided by M: made of that of its columns, or read where PRECISION is None."""
    if PRECISION is not None:
        re, im = _row(tables, at, zero, M, N1, N2, N3, PRECISION)
        return re * (1.0 / M), im * (1.0 / M)
    frequencies = _frequencies(N1, N2, N3) + zero
    return tl.load(at + frequencies).to(tl.float32), tl.load(at + M + frequencies).to(tl.float32)


@triton.jit
def filter_rows(
    planes,  # (filters, 2, N, R)
    tables,
    N: tl.constexpr,
    R: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    OF_FILTERS: tl.constexpr,
):
    """The transforms of filters from those of their columns, in place."""
    program = tl.program_id(0)
    M: tl.constexpr = N * R
    at = planes + wide(program // N) * (2 * M) + (program % N) * R
    re, im = _of_filter(tables, at, 0, M, N1, N2, N3, OF_FILTERS)
    frequencies = _frequencies(N1, N2, N3)
    tl.debug_barrier()  # others of the program still read what is written here
    tl.store(at + frequencies, re)
    tl.store(at + M + frequencies, im)


@triton.jit
def rows(
    planes,
    result,  # may be planes
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
    OF_FILTERS: tl.constexpr,  # the precision where a row is made of columns, None where it is read
):
    # Those that meet the same row of a filter run together.
    program = tl.program_id(0)
    M: tl.constexpr = N * R
    k, channel = (program // each) % N, program // (each * N)
    at = (wide(channel) * each + program % each) * (2 * M) + k * R
    of_h = spectrum + wide((channel + first_channel) // group - first_filter) * (2 * M) + k * R
    if OF_FILTERS is not None:
        p, q = _of_filter(tables, of_h, 0, M, N1, N2, N3, OF_FILTERS)
        re, im = _row(tables, planes + at, 0, M, N1, N2, N3, PRECISION)
    else:
        re, im = _row(tables, planes + at, 0, M, N1, N2, N3, PRECISION)
        p, q = _of_filter(tables, of_h, 0, M, N1, N2, N3, None)
    _row_back(tables, result + at, 0, re * p - im * q, re * q + im * p, M, N1, N2, N3, PRECISION)


@triton.jit
def columns_back(
    planes,
    bias,
    post,
    y,
    tables,
    slots,
    side,
    length,
    rows,  # of a channel that are under way: blocks of elements of the batch
    blocks,
    first_channel,
    first_row,
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
    NA: tl.constexpr,
    NB: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_POST: tl.constexpr,
    KEPT: tl.constexpr,
    FAR: tl.constexpr,
):
    M: tl.constexpr = NA * NB * R
    tile, channel, row, b, block = _program(side, rows, blocks, first_row, R // C)
    c = channel + first_channel
    at, is_kept = _row_places(slots, NA, NB, R, C, KEPT, tile)
    at += planes + row * (2 * KEPT * R)
    re, im = tl.load(at, mask=is_kept, other=0.0), tl.load(at + KEPT * R, mask=is_kept, other=0.0)
    re, im = _up(tables, re, im, tile, NA, NB, R, C, PRECISION)
    place = _places(NA, NB, R, C, tile)
    n = place.to(tl.int64) if FAR else place
    t = block * steps - behind
    high = _index(length - t, 2 * M)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias + b * bb + c * bc).to(tl.float32)
    of_post, of_y = post + b * qb + t * qt + c * qc, y + b * yb + t * yt + c * yc
    _write(re, n, behind, high, shift, of_post, of_y, qt, yt, ACTIVATION, HAS_BIAS, HAS_POST)
    _write(im, n + M, behind, high, shift, of_post, of_y, qt, yt, ACTIVATION, HAS_BIAS, HAS_POST)
