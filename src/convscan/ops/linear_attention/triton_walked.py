"""Gradients of linear attention with decays by step, by programs that walk over chunks with a state in registers.

With S the state before a chunk and R the gradient of the one behind it, in the notation of ``triton_chunked``,

    dk[s] = w[s] (sum_{t>=s} D[t,s] dy[t]^T v[s] q[t] + D[n-1,s] R v[s])
    dq[t] = sum_{s<=t} w[s] D[t,s] dy[t]^T v[s] k[s] + D[t,-1] S dy[t]

``of_keys`` goes back through a segment with R, ``of_queries`` forward with S, each with a block of keys and all values;
what both need of a chunk is made twice. The gradient of a decay is the sum of what passes over it: pairs of steps, keys
of the chunk on their way to R, queries that ask S, and, of a whole chunk, decayed S times R. This last product no
program can form, which has one of the two; but S times R behind a chunk is it and what the keys of the chunk add, and
before the chunk it and what its queries ask: so it is carried through a segment, from the product where that begins.
Rounding carried along from where the product was larger is kept below what S and R could give.
"""

# mypy: ignore-errors
# Kernels are a language of their own, whose types Triton checks.
from __future__ import annotations

import triton
import triton.language as tl

from ..._triton import dot, head_of, place_of, wide
from .triton_tiles import absorb, between_steps, column, rows


@triton.jit
def _state(between, values, at_k, in_keys, sk, sv, part, VALUES: tl.constexpr):
    """A part of a state in memory, (values, keys)."""
    at_v = wide(part * VALUES) + tl.arange(0, VALUES)
    inside = in_keys[None, :] & (at_v < values)[:, None]
    return tl.load(between + at_k[None, :] * sk + at_v[:, None] * sv, mask=inside, other=0.0)


@triton.jit
def _near(
    dy,
    v,
    g,
    row,
    in_rows,
    values,
    scale,
    yt,
    yc,
    vt,
    vc,
    gt,
    STEPS: tl.constexpr,
    VALUES: tl.constexpr,
    BOTH: tl.constexpr,
):
    """D[t,s] dy[t]^T v[s] of a chunk."""
    near = tl.zeros([STEPS, STEPS], tl.float32)
    for first_value in range(0, values, VALUES):
        at_v = wide(first_value) + tl.arange(0, VALUES)
        in_values = at_v < values
        of_v = rows(v, row, at_v, in_rows, in_values, vt, vc)
        near = dot(rows(dy, row, at_v, in_rows, in_values, yt, yc), tl.trans(of_v), near, BOTH)
    return near * between_steps(column(g, row, in_rows, gt), STEPS) * scale


@triton.jit
def of_keys(
    q,
    k,
    v,
    g,
    w,
    dy,
    before,  # (batch, segments, heads, keys, values): states
    behind,  # and their gradients
    start,
    dfinal,
    dinitial,
    dk,  # (batch, length, heads, keys)
    dg,  # (key blocks, batch, length, heads), as dw; here what keys have on their way out of a chunk
    dw,
    products,  # (key blocks, batch, segments, heads): S times R where segments begin
    largest,  # (key blocks, batch, chunks, heads): the largest number of R behind every chunk
    bounds,
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    segments,
    sequences,
    batch,
    chunks,
    blocks,
    qb,
    qt,
    qg,
    qk,
    kb,
    kt,
    kg,
    kk,
    vb,
    vt,
    vh,
    vc,
    gb,
    gt,
    gh,
    wb,
    wt,
    wh,
    yb,
    yt,
    yh,
    yc,
    sb,
    ss,
    sh,
    sk,
    sv,
    fb,
    fs,
    fh,
    fk,
    fv,
    ib,
    is_,
    ih,
    ik,
    iv,
    SEGMENT: tl.constexpr,
    WHOLE: tl.constexpr,
    PARTS: tl.constexpr,  # blocks of values
    STEPS: tl.constexpr,
    TIME: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_DFINAL: tl.constexpr,
    HAS_DINITIAL: tl.constexpr,
    PACKED: tl.constexpr,
    BOTH: tl.constexpr,
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    block, head, line, b = head_of(blocks, heads, sequences if WHOLE else segments)
    sequence, first_step, last_step, first, _count = place_of(line, bounds, table, length, SEGMENT, WHOLE, PACKED)
    group = head // in_group
    at_k = wide(block) * KEYS + tl.arange(0, KEYS)
    in_keys = at_k < keys
    q += b * qb + group * qg
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    dy += b * yb + head * yh
    segment = (b * segments + first) * heads + head
    of_block = wide(block) * batch
    state = ()
    for part in tl.static_range(PARTS):
        if not WHOLE:
            state = state + (_state(behind + segment * keys * values, values, at_k, in_keys, values, 1, part, VALUES),)
        elif HAS_DFINAL:
            at_state = dfinal + b * fb + sequence * fs + head * fh
            state = state + (_state(at_state, values, at_k, in_keys, fk, fv, part, VALUES),)
        else:
            state = state + (tl.zeros([VALUES, KEYS], tl.float32),)
    count = (last_step - first_step + STEPS - 1) // STEPS
    for index in range(0, count):
        chunk = count - 1 - index
        begin = first_step + chunk * STEPS
        end = tl.minimum(begin + STEPS, last_step)
        row = begin + tl.arange(0, STEPS)
        in_rows = row < end
        most = tl.zeros([], tl.float32)
        for part in tl.static_range(PARTS):
            most = tl.maximum(most, tl.max(tl.max(tl.abs(state[part]), 0), 0))
        at_chunk = (of_block + b) * chunks + first_step // STEPS + sequence + chunk
        tl.store(largest + at_chunk * heads + head, most)
        near = _near(dy, v, g, row, in_rows, values, scale, yt, yc, vt, vc, gt, STEPS, VALUES, BOTH)
        wrote = tl.zeros([STEPS, KEYS], tl.float32)
        for part in tl.static_range(PARTS):
            at_v = wide(part * VALUES) + tl.arange(0, VALUES)
            of_v = rows(v, row, at_v, in_rows, at_v < values, vt, vc).to(tl.float32)
            wrote = dot(of_v, state[part], wrote, RIGHT)
        wrote *= tl.exp(tl.cumsum(column(g, row + 1, row + 1 < end, gt), 0, reverse=True))[:, None]
        of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk).to(tl.float32)
        of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk).to(tl.float32)
        weight = tl.zeros([STEPS], tl.float32) + 1.0
        if HAS_W:
            weight = column(w, row, in_rows, wt)
        at_row = (b * length + row) * heads + head
        tl.store(dg + of_block * length * heads + at_row, tl.sum(of_k * wrote, 1) * weight, mask=in_rows)
        of_dk = dot(tl.trans(near), of_q, wrote, LEFT)
        if HAS_W:
            tl.store(dw + of_block * length * heads + at_row, tl.sum(of_k * of_dk, 1), mask=in_rows)
            of_dk *= weight[:, None]
        tl.store(dk + at_row[:, None] * keys + at_k[None, :], of_dk, mask=in_rows[:, None] & in_keys[None, :])
        earlier = ()
        for part in tl.static_range(PARTS):
            moved = (state[part],)
            for tile in tl.static_range(STEPS // TIME):
                moved = absorb(
                    moved,
                    q,
                    dy,
                    g,
                    w,
                    dy,
                    begin + (STEPS // TIME - 1 - tile) * TIME,
                    end,
                    block * KEYS,
                    keys,
                    wide(part * VALUES) + tl.arange(0, VALUES),
                    values,
                    scale,
                    qt,
                    qk,
                    yt,
                    yc,
                    gt,
                    0,
                    0,
                    0,
                    TIME,
                    KEYS,
                    False,
                    False,
                    False,
                    True,
                    RIGHT,
                    LEFT,
                    EXACT,
                )
            earlier = earlier + moved
        state = earlier
    product = tl.zeros([], tl.float32)
    for part in tl.static_range(PARTS):
        if not WHOLE:
            at_state = before + segment * keys * values
            own = _state(at_state, values, at_k, in_keys, values, 1, part, VALUES)
            product += tl.sum(tl.sum(own * state[part], 0), 0)
        elif HAS_START:
            at_state = start + b * sb + sequence * ss + head * sh
            own = _state(at_state, values, at_k, in_keys, sk, sv, part, VALUES)
            product += tl.sum(tl.sum(own * state[part], 0), 0)
        if HAS_DINITIAL:
            at_v = wide(part * VALUES) + tl.arange(0, VALUES)
            at_state = dinitial + b * ib + sequence * is_ + head * ih + at_k[None, :] * ik + at_v[:, None] * iv
            tl.store(at_state, state[part], mask=in_keys[None, :] & (at_v < values)[:, None])
    places = sequences if WHOLE else segments
    place = line if WHOLE else first
    tl.store(products + ((of_block + b) * places + place) * heads + head, product)


@triton.jit
def of_queries(
    q,
    k,
    v,
    g,
    w,
    dy,
    before,
    start,
    dq,  # (batch, length, heads, keys)
    dg,  # (key blocks, batch, length, heads)
    products,
    largest,
    bounds,
    table,
    scale,
    length,
    in_group,
    heads,
    keys,
    values,
    segments,
    sequences,
    batch,
    chunks,
    blocks,
    qb,
    qt,
    qg,
    qk,
    kb,
    kt,
    kg,
    kk,
    vb,
    vt,
    vh,
    vc,
    gb,
    gt,
    gh,
    wb,
    wt,
    wh,
    yb,
    yt,
    yh,
    yc,
    sb,
    ss,
    sh,
    sk,
    sv,
    SEGMENT: tl.constexpr,
    WHOLE: tl.constexpr,
    PARTS: tl.constexpr,
    STEPS: tl.constexpr,
    TIME: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    HAS_W: tl.constexpr,
    HAS_START: tl.constexpr,
    PACKED: tl.constexpr,
    BOTH: tl.constexpr,
    RIGHT: tl.constexpr,
    LEFT: tl.constexpr,
    EXACT: tl.constexpr,
):
    block, head, line, b = head_of(blocks, heads, sequences if WHOLE else segments)
    sequence, first_step, last_step, first, _count = place_of(line, bounds, table, length, SEGMENT, WHOLE, PACKED)
    group = head // in_group
    at_k = wide(block) * KEYS + tl.arange(0, KEYS)
    in_keys = at_k < keys
    q += b * qb + group * qg
    k += b * kb + group * kg
    v += b * vb + head * vh
    g += b * gb + head * gh
    w += b * wb + head * wh
    dy += b * yb + head * yh
    segment = (b * segments + first) * heads + head
    of_block = wide(block) * batch
    state = ()
    for part in tl.static_range(PARTS):
        if not WHOLE:
            state = state + (_state(before + segment * keys * values, values, at_k, in_keys, values, 1, part, VALUES),)
        elif HAS_START:
            at_state = start + b * sb + sequence * ss + head * sh
            state = state + (_state(at_state, values, at_k, in_keys, sk, sv, part, VALUES),)
        else:
            state = state + (tl.zeros([VALUES, KEYS], tl.float32),)
    places = sequences if WHOLE else segments
    place = line if WHOLE else first
    product = tl.load(products + ((of_block + b) * places + place) * heads + head)
    i, j = tl.arange(0, STEPS)[:, None], tl.arange(0, STEPS)[None, :]
    count = (last_step - first_step + STEPS - 1) // STEPS
    for chunk in range(0, count):
        begin = first_step + chunk * STEPS
        end = tl.minimum(begin + STEPS, last_step)
        row = begin + tl.arange(0, STEPS)
        in_rows = row < end
        at_row = (b * length + row) * heads + head
        at_dg = dg + of_block * length * heads + at_row
        near = _near(dy, v, g, row, in_rows, values, scale, yt, yc, vt, vc, gt, STEPS, VALUES, BOTH)
        if HAS_W:
            near *= column(w, row, in_rows, wt)[None, :]
        of_q = rows(q, row, at_k, in_rows, in_keys, qt, qk)
        of_k = rows(k, row, at_k, in_rows, in_keys, kt, kk)
        pairs = dot(of_q, tl.trans(of_k), tl.zeros([STEPS, STEPS], tl.float32), BOTH) * near
        leaving = tl.load(at_dg, mask=in_rows, other=0.0)
        passing = tl.cumsum(pairs, 0, reverse=True) + leaving[None, :]
        of_dg = tl.sum(tl.where(j < i, passing, 0.0), 1)
        read = tl.zeros([STEPS, KEYS], tl.float32)
        size = tl.zeros([], tl.float32)
        for part in tl.static_range(PARTS):
            at_v = wide(part * VALUES) + tl.arange(0, VALUES)
            of_dy = rows(dy, row, at_v, in_rows, at_v < values, yt, yc).to(tl.float32)
            read = dot(of_dy, state[part], read, RIGHT)
            size += tl.sum(tl.sum(tl.abs(state[part]), 0), 0)
        of_g = column(g, row, in_rows, gt)
        read *= (tl.exp(tl.cumsum(of_g, 0)) * scale)[:, None]
        asked = tl.sum(of_q.to(tl.float32) * read, 1)
        whole = tl.exp(tl.sum(of_g, 0))
        at_chunk = (of_block + b) * chunks + first_step // STEPS + sequence + chunk
        most = whole * size * tl.load(largest + at_chunk * heads + head)
        through = tl.minimum(tl.maximum(product - tl.sum(asked, 0), -most), most)
        through = tl.where(whole == 0.0, 0.0, through)
        tl.debug_barrier()  # what is overwritten has been read
        tl.store(at_dg, of_dg + tl.cumsum(asked, 0, reverse=True) + through, mask=in_rows)
        product = through + tl.sum(leaving, 0)
        of_dq = dot(near, of_k.to(tl.float32), read, LEFT)
        tl.store(dq + at_row[:, None] * keys + at_k[None, :], of_dq, mask=in_rows[:, None] & in_keys[None, :])
        later = ()
        for part in tl.static_range(PARTS):
            moved = (state[part],)
            for tile in tl.static_range(STEPS // TIME):
                moved = absorb(
                    moved,
                    k,
                    v,
                    g,
                    w,
                    v,
                    begin + tile * TIME,
                    end,
                    block * KEYS,
                    keys,
                    wide(part * VALUES) + tl.arange(0, VALUES),
                    values,
                    scale,
                    kt,
                    kk,
                    vt,
                    vc,
                    gt,
                    0,
                    wt,
                    0,
                    TIME,
                    KEYS,
                    False,
                    HAS_W,
                    False,
                    False,
                    RIGHT,
                    LEFT,
                    EXACT,
                )
            later = later + moved
        state = later
